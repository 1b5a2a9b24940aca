"""Codes of labelled texts: of single rows, as means over texts, and of rival dictionaries."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.counted import Counted
from sae.activations.labelled import TextActivations
from sae.dictionaries.sae import SAE, SAEConfig


class Pooled(NamedTuple):
    """Means over the tokens of each text.

    Args:
        x: Means of the activations.
        f: Means of the latents.
    """

    x: Float[Tensor, "texts d_in"]
    f: Float[Tensor, "texts d_sae"]

    def of(self, texts: Tensor) -> "Pooled":
        """Some of the texts."""
        return Pooled(self.x[texts], self.f[texts])


@torch.no_grad()
def encode(
    sae: SAE, x: Float[Tensor, "n d_in"], columns: Tensor | None = None, batch_rows: int = 512
) -> Float[Tensor, "n latents"]:
    """Feature activations on the CPU: of all latents, or of some, in their order."""
    parts = []
    for rows in x.split(batch_rows):
        f = sae.encode(rows.to(sae.device)).float()
        parts.append((f if columns is None else f[:, columns.to(f.device)]).cpu())
    return torch.cat(parts)


@torch.no_grad()
def pool(
    sae: SAE,
    activations: TextActivations,
    counted: Counted | None = None,
    batch_rows: int = 1024,
) -> Pooled:
    """Encode every token that counts, keep the means of each text; on the CPU.

    A massive activation would decide the mean of its text, and an ablation leaves it as it is. A
    text none of whose tokens count is all zeros. (SAEBench leaves special tokens out; these texts
    have none.)
    """
    text = torch.repeat_interleave(activations.lengths)
    num_texts = len(activations.lengths)
    x_sum, f_sum = torch.zeros(num_texts, sae.d_in), torch.zeros(num_texts, sae.d_sae)
    count = torch.zeros(num_texts, 1)
    for rows, owner in zip(activations.x.split(batch_rows), text.split(batch_rows), strict=True):
        if counted is not None:
            counts = counted.mask([rows], None)
            rows, owner = rows[counts], owner[counts]
        x = rows.float()
        x_sum.index_add_(0, owner, x)
        f_sum.index_add_(0, owner, sae.encode(x.to(sae.device)).float().cpu())
        count.index_add_(0, owner, torch.ones(len(owner), 1))
    return Pooled(x_sum / count.clamp_min(1), f_sum / count.clamp_min(1))


def random_sae(sae: SAE, l0: float, mean: Float[Tensor, " d_in"], seed: int) -> SAE:
    """Random unit directions as encoder and decoder; as many latents, as many of them firing.

    Args:
        sae: Decides the widths.
        l0: Latents to fire at each vector, rounded.
        mean: Vector that is subtracted first.
        seed: Seed of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(sae.d_sae, sae.d_in, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    k = min(max(1, round(l0)), sae.d_sae)
    return SAE(
        W_enc=W_dec.T.contiguous(), b_enc=-(W_dec @ mean), W_dec=W_dec, b_dec=mean,
        config=SAEConfig("random", "topk", sae.d_in, sae.d_sae, k=k),
    ).to(sae.device)  # fmt: skip


def principal_components(
    x: Float[Tensor, "n d_in"], x_test: Float[Tensor, "tests d_in"]
) -> tuple[Tensor, Tensor]:
    """Coordinates on the principal components of `x`, those of largest variance first."""
    mean = x.mean(0)
    _, _, axes = torch.linalg.svd(x - mean, full_matrices=False)
    return (x - mean) @ axes.T, (x_test - mean) @ axes.T
