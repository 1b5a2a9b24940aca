"""Rows of length 1: their gradient, the sphere they move on. A matrix is read once for each."""

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_SHORTEST = 1e-8


def unit_rows(weight: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Rows scaled to length 1 (a row of zeros stays zero); gradients flow through."""
    return _UnitRows.apply(weight)  # pyright: ignore[reportReturnType]


def normalize_rows_(weight: Float[Tensor, "rows width"]) -> None:
    """Bring the rows of a tensor that needs no gradient here back to length 1, in place."""
    if kernels := compiled(weight):
        kernels.normalize_rows(weight.numpy(), weight.numpy(), _SHORTEST)
    else:
        weight /= weight.norm(dim=1, keepdim=True).clamp_min_(_SHORTEST)


def project_off_rows_(grad: Float[Tensor, "rows width"], unit: Float[Tensor, "rows width"]) -> None:
    """Remove from each row of `grad` its component along the unit row, in place."""
    if kernels := compiled(grad, unit):
        ones = grad.new_ones(len(grad))
        kernels.project_off_rows(grad.numpy(), unit.numpy(), ones.numpy(), grad.numpy())
    else:
        grad.addcmul_(torch.linalg.vecdot(grad, unit).unsqueeze(1), unit, value=-1)


class _UnitRows(torch.autograd.Function):
    """W / ||rows||; its gradient by hand, because autograd's takes ten passes over the matrix."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        if kernels := compiled(weight):
            unit, source = torch.empty_like(weight), weight.detach()
            norms = torch.from_numpy(
                kernels.normalize_rows(source.numpy(), unit.numpy(), _SHORTEST)
            )
        else:
            norms = weight.norm(dim=1).clamp_min_(_SHORTEST)
            unit = weight / norms[:, None]
        ctx.save_for_backward(unit, norms)
        return unit

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (unit, norms), grad = ctx.saved_tensors, grads[0]
        if kernels := compiled(grad, unit):
            out = torch.empty_like(unit)
            kernels.project_off_rows(grad.numpy(), unit.numpy(), norms.numpy(), out.numpy())
            return out
        along = torch.linalg.vecdot(grad, unit).unsqueeze(1)
        return torch.addcmul(grad, along, unit, value=-1).div_(norms[:, None])


def compiled(*tensors: Tensor) -> ModuleType | None:
    """The CPU's kernels, where they can read these tensors."""
    for tensor in tensors:
        plain = tensor.dtype in (torch.float32, torch.float64) and tensor.is_contiguous()
        if tensor.device.type != "cpu" or not plain:
            return None
    from sae.kernels import numba_cpu

    return numba_cpu
