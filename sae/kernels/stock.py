"""The sparse products in stock PyTorch: for devices without kernels of ours, and as a reference."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.kernels.pattern import ByLatent, Pattern

Selected = tuple[Int[Tensor, " batch_plus_1"], Int[Tensor, " pairs"]]


def select_positive(pre: Float[Tensor, "batch d_sae"], most: int) -> Selected | None:
    """See `sae.kernels.ops`."""
    offsets, latents = _compressed(pre > 0)
    return (offsets, latents) if len(latents) <= most else None


def select_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`."""
    latents = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
    mask = torch.zeros_like(pre, dtype=torch.bool).scatter(1, latents, True)
    return _compressed(mask & (pre > 0))


def select_batch_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`."""
    flat = pre.flatten()
    chosen = flat.sort(descending=True, stable=True).indices[: k * len(pre)]
    mask = torch.zeros_like(flat, dtype=torch.bool).index_fill(0, chosen, True)
    return _compressed(mask.view_as(pre) & (pre > 0))


def transpose(pattern: Pattern) -> ByLatent:
    """Pairs by latent: offsets, row of each, number of each in the pattern."""
    order = pattern.latents.argsort(stable=True)
    counts = torch.bincount(pattern.latents, minlength=pattern.d_sae)
    return ByLatent(_offsets(counts), pattern.rows[order], order)


def pair_dots(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, " pairs"]:
    """See `sae.kernels.ops`."""
    return (x[pattern.rows] * W[pattern.latents]).sum(1)


def rows_sum(
    values: Float[Tensor, " pairs"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, "batch d_in"]:
    """See `sae.kernels.ops`."""
    out = W.new_zeros(pattern.batch, W.shape[1])
    return out.index_add_(0, pattern.rows, values[:, None] * W[pattern.latents])


def latents_sum(
    values: Float[Tensor, " pairs"], x: Float[Tensor, "batch d_in"], pattern: Pattern
) -> Float[Tensor, "d_sae d_in"]:
    """See `sae.kernels.ops`."""
    out = x.new_zeros(pattern.d_sae, x.shape[1])
    return out.index_add_(0, pattern.latents, values[:, None] * x[pattern.rows])


def _compressed(mask: Tensor) -> Selected:
    return _offsets(mask.sum(1)), mask.nonzero()[:, 1]


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
