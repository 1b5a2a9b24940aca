"""Edits of codes, written back into the activation they came from."""

from jaxtyping import Bool, Float
from torch import Tensor


def without(
    x: Float[Tensor, "batch d_in"],
    f: Float[Tensor, "batch d_sae"],
    latents: Bool[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Float[Tensor, "batch d_in"]:
    """Activations with some latents set to zero and the SAE's error kept: `x - f[S] @ W_dec[S]`.

    Decoding is linear, so this also holds for means of activations and of their codes.

    Args:
        x: Activations.
        f: Their codes.
        latents: Latents that are set to zero.
        W_dec: Decoder.

    Example:
        >>> import torch
        >>> x, f = torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 2.0]])
        >>> without(x, f, torch.tensor([False, True]), torch.eye(2)).tolist()
        [[3.0, 3.0]]
    """
    return x - f[:, latents] @ W_dec[latents].float()
