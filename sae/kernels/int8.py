"""Pre-activations from a product of 8-bit integers, exact enough to tell which latents may fire.

x and W are written as whole numbers times a step for each row. The few input dimensions of largest
mean square, which would set every step, are multiplied in float32, and so is the bias; the library
adds both products up, and scales the integers by latent, before it stores them. What is selected is
computed again in float32 (`ops.latent_values`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.kernels.ops import backend_for
from sae.kernels.pattern import Pattern

X_LEVELS, W_LEVELS = 127, 63
"""Largest whole numbers. CPUs without an instruction for dot products of bytes add two products of
bytes in 16 bits, where 2 * 255 * 63 fits, and 2 * 255 * 127 would be cut off."""
SIGMAS = 4.0
"""Standard deviations of the rounding error that are added to what was multiplied. With 2.5, 1 in
10,000 firing latents is missed: those that hardly fire, so that L0 drifts by half a percent."""
_KEPT = 16
_MEASURED_ROWS = 256


class Bounds(NamedTuple):
    """Upper bounds of pre-activations, but for rare rounding errors.

    Attributes:
        pre: Pre-activations in a unit of each row, which changes neither signs nor the order in a
            row.
        units: The rows' units.
    """

    pre: Float[Tensor, "batch d_sae"]
    units: Float[Tensor, "batch 1"]


def available() -> bool:
    """True if this PyTorch has the product; without it `upper_bounds` is not to be called."""
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.backends.mkldnn.is_available()


@torch.no_grad()
def upper_bounds(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_sae d_in"], bias: Float[Tensor, " d_sae"]
) -> Bounds:
    r"""`x @ W.T + bias` plus `SIGMAS` standard deviations of the error, on a CPU, in float32.

    Rounding to steps s gives errors of variance $s^2 / 12$, independent of each other. With W of
    rows of length $l_j$ and steps near $q l_j$ the error of a pair has the variance
    $l_j^2 (s_r^2 + q^2 |x_r|^2) / 12$: a number of the row times a number of the latent, so that
    the margin is one more column of the product in float32.
    """
    x, W, bias = x.detach().contiguous(), W.detach().float().contiguous(), bias.detach()
    kept = x[:_MEASURED_ROWS].square().mean(0).topk(min(_KEPT, x.shape[1])).indices
    rounded = x.new_ones(x.shape[1]).index_fill_(0, kept, 0)
    kernels = backend_for(x.device)
    x_int, x_steps, x_norms = kernels.quantize_rows(x, rounded, X_LEVELS, torch.uint8)
    W_int, W_steps, W_norms = kernels.quantize_rows(W, rounded, W_LEVELS, torch.int8)
    q = (W_steps / W_norms.clamp_min(torch.finfo().tiny)).square().mean()
    margins = SIGMAS * ((x_steps.square() + q * x_norms.square()) / 12).sqrt()
    with torch.autocast("cpu", enabled=False):
        left = torch.cat([x[:, kept], torch.ones_like(margins), margins], dim=1) / x_steps
        right = torch.cat([W[:, kept], bias[:, None], W_norms], dim=1)
        pre = _add_product(left @ right.T, x_int, W_int, W_steps.flatten())
    return Bounds(pre, x_steps)


def select_among(
    candidates: Pattern, values: Float[Tensor, " pairs"], select: Callable[[Tensor], Pattern]
) -> Bool[Tensor, " pairs"]:
    """Pairs that `select` picks from a matrix that has their values, and zeros elsewhere.

    Example:
        >>> from sae.kernels import select_positive, select_topk
        >>> pattern = select_positive(torch.tensor([[0.5, 1.0, 2.0], [0.0, -3.0, 1.0]]))
        >>> values = torch.tensor([0.7, 0.6, 2.0, 1.0])
        >>> select_among(pattern, values, lambda pre: select_topk(pre, 2)).tolist()
        [True, False, True, True]
    """
    places = torch.arange(len(values)) - candidates.offsets[:-1].index_select(0, candidates.rows)
    width = max(1, int(candidates.offsets.diff().max())) if candidates.batch else 1
    matrix = values.new_zeros(candidates.batch, width)
    matrix[candidates.rows, places] = values
    chosen = select(matrix)
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[candidates.offsets.index_select(0, chosen.rows) + chosen.latents] = True
    return kept


def _add_product(total: Tensor, x: Tensor, W: Tensor, steps: Tensor) -> Tensor:
    """`total + (x - 128) @ W.T * steps`, with sums in 32-bit integers."""
    onednn: Any = torch.ops.onednn
    packed, zeros = onednn.qlinear_prepack(W, None), torch.zeros(len(W), dtype=torch.int32)
    return onednn.qlinear_pointwise.binary(
        x, 1.0, 128, packed, steps, zeros, total, None, 1.0, 0, torch.float32, 1.0, 0,
        "sum", 1.0, "none", [], "",
    )  # fmt: skip
