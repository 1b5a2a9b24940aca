"""Edits of codes, written back into the activation they came from."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.language.lm import Replacement

Edit = Callable[[Tensor], Tensor]
"""Makes, of codes [batch ctx d_sae], other codes of the same shape."""
Latents = Sequence[int] | Tensor
"""Indices of latents, or a mask [d_sae]."""


def set_to(latents: Latents, value: float | Tensor) -> Edit:
    """Edit that sets latents to a value, or to one each; 0 ablates them."""

    def edit(f: Tensor) -> Tensor:
        changed = f.clone()
        changed[..., _tensor(latents, f)] = torch.as_tensor(value, dtype=f.dtype, device=f.device)
        return changed

    return edit


def scaled(latents: Latents, factor: float) -> Edit:
    """Edit that multiplies latents by a factor."""

    def edit(f: Tensor) -> Tensor:
        changed = f.clone()
        changed[..., _tensor(latents, f)] *= factor
        return changed

    return edit


def added(latents: Latents, value: float | Tensor) -> Edit:
    """Edit that adds a value to latents, or one to each."""

    def edit(f: Tensor) -> Tensor:
        changed = f.clone()
        changed[..., _tensor(latents, f)] += torch.as_tensor(value, dtype=f.dtype, device=f.device)
        return changed

    return edit


def clamped(latents: Latents, low: float | None = None, high: float | None = None) -> Edit:
    """Edit that keeps latents between two values; None means no bound.

    Raises:
        ConfigError: If there is no bound, or the lower one is above the upper one.
    """
    if low is None and high is None or (low is not None and high is not None and low > high):
        raise ConfigError(f"low={low} and high={high} are no bounds. Give one, or low <= high.")

    def edit(f: Tensor) -> Tensor:
        changed, chosen = f.clone(), _tensor(latents, f)
        changed[..., chosen] = changed[..., chosen].clamp(low, high)
        return changed

    return edit


def swapped(latents: Latents, other: Float[Tensor, "... d_sae"]) -> Edit:
    """Edit that takes latents from another code, such as that of a counterfactual prompt."""
    return lambda f: set_to(latents, other.to(f)[..., _tensor(latents, f)])(f)


def edited(sae: SAE, edit: Edit, error: Literal["kept", "dropped"] = "kept") -> Replacement:
    """The activation with its code edited.

    Args:
        sae: Encodes and decodes.
        edit: The edit.
        error: `kept`: `x + (edit(f) - f) @ W_dec`, so that the part of x that the SAE misses stays
            and an edit that changes nothing has no effect. `dropped`: `decode(edit(f))`.

    Raises:
        ConfigError: If the SAE writes to another place than it reads.
    """
    if sae.d_out != sae.d_in or sae.W_skip is not None:
        raise ConfigError(
            "A transcoder's code cannot be written back into what it reads. Choose an SAE that "
            "reads and writes one point."
        )

    def replace(x: Tensor) -> Tensor:
        f = sae.encode(x)
        if error == "dropped":
            return sae.decode(edit(f)).to(x)
        return x + ((edit(f) - f) @ sae.W_dec).to(x)

    return replace


def projected_out(directions: Float[Tensor, "n d_in"]) -> Replacement:
    """The activation without its part in the span of some directions, such as decoder rows."""
    columns, sizes, _ = torch.linalg.svd(directions.float().T, full_matrices=False)
    basis = columns[:, sizes > 1e-6 * sizes[:1]]  # directions may depend on each other
    return lambda x: x - (x.float() @ basis.to(x.device) @ basis.to(x.device).T).to(x)


def at(positions: Bool[Tensor, "batch ctx"], replacement: Replacement) -> Replacement:
    """The replacement at some positions; the activation stays as it is at the others."""

    def replace(x: Tensor) -> Tensor:
        return torch.where(positions[..., None].to(x.device), replacement(x).to(x), x)

    return replace


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
        >>> x, f = torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 2.0]])
        >>> without(x, f, torch.tensor([False, True]), torch.eye(2)).tolist()
        [[3.0, 3.0]]
    """
    return x - f[:, latents] @ W_dec[latents].float()


def _tensor(latents: Latents, f: Tensor) -> Tensor:
    """Indices or a mask, on the device of the codes."""
    return known_latents(latents, f.shape[-1], f.device)


def known_latents(latents: Latents, d_sae: int, device: torch.device) -> Tensor:
    """Indices or a mask on a device.

    Raises:
        ConfigError: If the SAE has fewer latents.
    """
    try:
        chosen = torch.as_tensor(latents, device=device)
    except (RuntimeError, ValueError):  # 64 bits do not hold a number
        raise _not_among(list(latents), d_sae) from None
    if chosen.dtype == torch.bool:
        fits = chosen.shape == (d_sae,)
    else:
        if chosen.is_floating_point() and chosen.numel():  # as of a column of a table
            raise ConfigError(
                f"Latents are whole numbers, and were given as {chosen.dtype}. Give integers "
                f"from 0 to {d_sae - 1}, or a mask of {d_sae} booleans."
            )
        chosen = chosen.long()
        fits = not chosen.numel() or (int(chosen.min()) >= 0 and int(chosen.max()) < d_sae)
    if not fits:
        given = chosen.tolist() if chosen.numel() < 20 else f"of shape {list(chosen.shape)}"
        raise _not_among(given, d_sae)
    return chosen


def _not_among(given: object, d_sae: int) -> ConfigError:
    return ConfigError(
        f"Latents {given} are not all among the SAE's {d_sae}: give indices from 0 to "
        f"{d_sae - 1}, or a mask of that length."
    )
