"""Codes from products of a batch with a matrix: dense, or computed only for what fires.

`kernels` is what `trainer.kernels` says: auto, int8, dense or sparse.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.kernels import Pattern, int8, latent_values, select_above_up_to, select_positive_up_to

SPARSE_BELOW = 0.08
"""Share of positive pre-activations in a batch up to which the sparse kernels beat dense products.

Measured with benchmarks/scaling.py (docs/results/speed.md); it depends little on the sizes."""


def sparse_enough(
    pre: Float[Tensor, "batch d_sae"],
    kernels: str,
    thresholds: Float[Tensor, " d_sae"] | None = None,
) -> Pattern | None:
    """The positive pre-activations, if they are so few that the sparse kernels are faster.

    With `thresholds` those that exceed them.

    The dense product that selects is the start of a dense code as well, so that measuring the
    density of each batch costs one count.
    """
    # on a GPU the count would have to be waited for, and dense products are hard to beat
    forced = kernels == "sparse"
    if kernels == "dense" or (not forced and pre.device.type != "cpu"):
        return None
    most = int((1.0 if forced else SPARSE_BELOW) * pre.numel())
    if thresholds is None:
        return select_positive_up_to(pre, most)
    return select_above_up_to(pre, thresholds, most)


def few_or_dense(x: Tensor, W: Tensor, bias: Tensor, kernels: str) -> Pattern | Tensor:
    """Pattern of (nearly) positive `x @ W.T + bias`, if few are; else these pre-activations."""
    if _by_int8(x, kernels):
        pattern = sparse_enough(int8.upper_bounds(x, W, bias).pre, kernels)
        if pattern is not None:
            return pattern
    pre = linear(x, W, bias)
    pattern = sparse_enough(pre, kernels)
    return pre if pattern is None else pattern


def relu_code(x: Tensor, W: Tensor, bias: Tensor, kernels: str) -> Code:
    """`relu(x @ W.T + bias)`, dense or sparse."""
    found = few_or_dense(x, W, bias, kernels)
    if isinstance(found, Tensor):
        return DenseCode(torch.relu(found))
    return SparseCode(found, torch.relu(latent_values(x, W, bias, found)))


def selected_code(
    x: Tensor,
    W: Tensor,
    bias: Tensor,
    kernels: str,
    select: Callable[[Tensor], Pattern],
    candidates: Callable[[Tensor], Pattern] | None = None,
) -> Code:
    """ReLU code of the latents that `select` picks from the pre-activations.

    With `candidates`, which picks some more, an int8 product may come first: `select` then
    picks among the candidates by their values in float32.
    """
    if kernels == "dense":
        pre = linear(x, W, bias)
        pattern = select(pre)
        values = torch.relu(pre[pattern.rows, pattern.latents])
        return DenseCode(SparseCode(pattern, values).dense())
    known = None
    with torch.no_grad():
        if candidates is not None and _by_int8(x, kernels):
            bounds = int8.upper_bounds(x, W, bias)
            some = candidates(bounds.pre.mul_(bounds.units))
            values = latent_values(x, W, bias, some)
            kept = int8.select_among(some, values, select)
            pattern, known = some.only(kept), values[kept]
        else:
            pattern = select(linear(x, W, bias))
    return SparseCode(pattern, torch.relu(latent_values(x, W, bias, pattern, known)))


def _by_int8(x: Tensor, kernels: str) -> bool:
    there = x.device.type == "cpu" and x.dtype == torch.float32 and int8.available()
    return there and kernels == "int8"
