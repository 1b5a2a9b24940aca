"""The sparse step: which latents fire, their values, and the sum of their atoms.

Three products make the forward and the backward pass of every dictionary with a sparse code, and
each is the gradient of the others, with E the (row, latent) pairs of a `Pattern`:

- `pair_dots`: for each pair of E the dot product of a row of x and a row of W;
- `rows_sum`: for each row the sum over its pairs of value times row of W;
- `latents_sum`: for each latent the sum over its pairs of value times row of x.

A back end is a module with these three, the three selections and `transpose`; `ops` adds autograd.
Cost is O(pairs * d_in), where a dense product is O(batch * d_sae * d_in).
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels import rows as matrix_rows
from sae.kernels.pattern import Pattern

_MODULES = {"cpu": "sae.kernels.numba_cpu", "triton": "sae.kernels.triton_gpu"}


def backend_for(device: torch.device) -> ModuleType | Any:
    """The fastest back end for tensors on `device`; stock PyTorch where there is none.

    A GPU needs Triton, which PyTorch's CUDA builds bring along.
    """
    if device.type == "cpu":
        return import_module(_MODULES["cpu"])
    if device.type == "cuda" and find_spec("triton") is not None:
        return import_module(_MODULES["triton"])
    return import_module("sae.kernels.stock")


def select_positive(pre: Float[Tensor, "batch d_sae"]) -> Pattern:
    """All latents with a positive pre-activation (ReLU).

    Example:
        >>> pattern = select_positive(torch.tensor([[0.5, -1.0, 2.0], [0.0, -3.0, -1.0]]))
        >>> pattern.offsets.tolist(), pattern.latents.tolist()
        ([0, 2, 2], [0, 2])
    """
    pattern = select_positive_up_to(pre, pre.numel())
    assert pattern is not None
    return pattern


def select_positive_up_to(pre: Float[Tensor, "batch d_sae"], most: int) -> Pattern | None:
    """Like `select_positive`, but None (after a cheap count) if more than `most` are positive."""
    selected = backend_for(pre.device).select_positive(pre.detach().contiguous(), most)
    if selected is None:
        return None
    offsets, latents = selected
    return Pattern(offsets, latents, pre.shape[1])


def select_above_up_to(
    pre: Float[Tensor, "batch d_sae"], thresholds: Float[Tensor, " d_sae"], most: int
) -> Pattern | None:
    """Latents whose pre-activation exceeds their threshold; None if there are more than `most`.

    Example:
        >>> pre = torch.tensor([[0.5, -1.0, 2.0], [0.0, -3.0, -1.0]])
        >>> select_above_up_to(pre, torch.tensor([0.5, -2.0, 0.0]), 2).latents.tolist()
        [1, 2]
    """
    pre, thresholds = pre.detach().contiguous(), thresholds.detach().contiguous()
    if pre.dtype == torch.bfloat16 and (kernels := matrix_rows.compiled(thresholds.float())):
        selected = kernels.select_above_bf16(pre, thresholds.float(), most)
    elif kernels := matrix_rows.compiled(pre, thresholds.to(pre.dtype)):
        selected = kernels.select_above(pre, thresholds.to(pre.dtype), most)
    else:
        selected = backend_for(pre.device).select_positive(pre - thresholds, most)
    if selected is None:
        return None
    offsets, latents = selected
    return Pattern(offsets, latents, pre.shape[1])


def select_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Pattern:
    """Top-k of each row, positive values only; ties go to the lower index.

    Example:
        >>> pattern = select_topk(torch.tensor([[0.5, 1.0, 2.0], [0.0, -3.0, 1.0]]), 2)
        >>> pattern.offsets.tolist(), pattern.latents.tolist()
        ([0, 2, 3], [1, 2, 2])
    """
    return _select("select_topk", pre, k)


def select_batch_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Pattern:
    """Top `batch * k` of the whole batch, positive values only; ties go to the lower index.

    Example:
        >>> pattern = select_batch_topk(torch.tensor([[0.5, 1.0, 2.0], [0.1, -3.0, 0.2]]), 1)
        >>> pattern.offsets.tolist(), pattern.latents.tolist()
        ([0, 2, 2], [1, 2])
    """
    return _select("select_batch_topk", pre, k)


def _select(name: str, pre: Tensor, *args: Any) -> Pattern:
    backend = backend_for(pre.device)
    offsets, latents = getattr(backend, name)(pre.detach().contiguous(), *args)
    return Pattern(offsets, latents, pre.shape[1])


def latent_values(
    x: Float[Tensor, "batch d_in"],
    W: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_sae"],
    pattern: Pattern,
    known: Float[Tensor, " pairs"] | None = None,
) -> Float[Tensor, " pairs"]:
    """Pre-activations `x[r] . W[j] + bias[j]` of the selected pairs, with gradients.

    `known` are these pre-activations without gradients, if they were computed before.
    """
    return _LatentValues.apply(x.to(W.dtype), W, bias, pattern, known)  # pyright: ignore[reportReturnType]


def atoms_sum(
    values: Float[Tensor, " pairs"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, "batch d_in"]:
    """Reconstruction: for each row the sum of its selected atoms, with gradients."""
    return _AtomsSum.apply(values, W, pattern)  # pyright: ignore[reportReturnType]


def row_sums(values: Float[Tensor, " pairs"], pattern: Pattern) -> Float[Tensor, " batch"]:
    """Sum of each row's values, with gradients.

    Example:
        >>> pattern = select_positive(torch.tensor([[0.5, -1.0, 2.0], [0.0, -3.0, 1.0]]))
        >>> row_sums(torch.tensor([1.0, 2.0, 4.0]), pattern).tolist()
        [3.0, 4.0]
    """
    return _RowSums.apply(values, pattern)  # pyright: ignore[reportReturnType]


def latent_entries(vector: Float[Tensor, " d_sae"], pattern: Pattern) -> Float[Tensor, " pairs"]:
    """`vector[j]` of each selected pair (r, j), with gradients.

    Example:
        >>> pattern = select_positive(torch.tensor([[0.5, -1.0, 2.0], [0.0, -3.0, 1.0]]))
        >>> latent_entries(torch.tensor([1.0, 2.0, 3.0]), pattern).tolist()
        [1.0, 3.0, 3.0]
    """
    return _LatentEntries.apply(vector, pattern)  # pyright: ignore[reportReturnType]


def _bias_grad(ctx: Any, grad: Tensor) -> Tensor:
    """Sums over the pairs of each latent; `index_add_` would add in any order on a GPU."""
    if grad.device.type == "cpu":
        return grad.new_zeros(ctx.pattern.d_sae).index_add_(0, ctx.pattern.latents, grad)
    ones = grad.new_ones(ctx.pattern.batch, 1)
    return ctx.backend.latents_sum(grad, ones, ctx.pattern).squeeze(1)


class _LatentValues(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor, pattern: Pattern, known: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.pattern, ctx.backend = pattern, backend_for(x.device)
        if known is not None:
            return known.view_as(known)
        return ctx.backend.pair_dots(x, W, pattern) + bias.index_select(0, pattern.latents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, W), grad = ctx.saved_tensors, grads[0].contiguous()
        wants_x, wants_W, wants_bias, *_ = ctx.needs_input_grad
        return (
            ctx.backend.rows_sum(grad, W, ctx.pattern) if wants_x else None,
            ctx.backend.latents_sum(grad, x, ctx.pattern) if wants_W else None,
            _bias_grad(ctx, grad) if wants_bias else None,
            None,
            None,
        )


class _LatentEntries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern, ctx.backend = pattern, backend_for(vector.device)
        return vector.index_select(0, pattern.latents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _bias_grad(ctx, grads[0].contiguous()), None


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        if values.device.type == "cpu":
            return values.new_zeros(pattern.batch).index_add_(0, pattern.rows, values)
        ones = values.new_ones(pattern.d_sae, 1)
        return backend_for(values.device).rows_sum(values.contiguous(), ones, pattern).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0].index_select(0, ctx.pattern.rows), None


class _AtomsSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W)
        ctx.pattern, ctx.backend = pattern, backend_for(W.device)
        return ctx.backend.rows_sum(values.contiguous(), W, pattern)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (values, W), grad = ctx.saved_tensors, grads[0].contiguous()
        wants_values, wants_W, _ = ctx.needs_input_grad
        return (
            ctx.backend.pair_dots(grad, W, ctx.pattern) if wants_values else None,
            ctx.backend.latents_sum(values.contiguous(), grad, ctx.pattern) if wants_W else None,
            None,
        )
