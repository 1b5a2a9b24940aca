"""The gradients of a code that jumps, where most of a batch is within reach of the estimate."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.kernels import rows
from sae.kernels.pattern import Pattern


def jump_gradients_(
    of_f: Float[Tensor, "batch d_sae"],
    to_values: Float[Tensor, " pairs"],
    at_zero: float | Float[Tensor, ""],
    pre: Float[Tensor, "batch d_sae"],
    theta: Float[Tensor, " d_sae"],
    bandwidth: float,
    fires: Pattern,
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    r"""Turn the gradient of f into that of the pre-activations, in place, in one pass.

    With g = `of_f` + `at_zero`, plus `to_values` where f fires, and K = 1 within half a bandwidth
    of the threshold: $g (1[\pi > \theta] + K \theta / \epsilon)$.

    Args:
        of_f: Gradient of every f from the reconstruction; is overwritten.
        to_values: Further term in the gradient of a firing f.
        at_zero: Further term in the gradient of every f.
        pre: Pre-activations.
        theta: Thresholds.
        bandwidth: ε.
        fires: The pairs with `pre > theta`.

    Returns:
        Sums over the batch: gradients of the thresholds, $-\sum g K \theta / \epsilon$, and of the
        encoder's biases.
    """
    low = all(one.dtype == torch.bfloat16 and one.is_contiguous() for one in (of_f, pre))
    if low and (kernels := rows.compiled(theta)):
        sums = kernels.jump_gradients_bf16(of_f, to_values, at_zero, pre, theta, bandwidth, fires)
        return torch.from_numpy(sums[0]), torch.from_numpy(sums[1])
    if kernels := rows.compiled(of_f, pre, theta):
        sums = kernels.jump_gradients(
            of_f.numpy(), to_values, at_zero, pre.numpy(), theta.numpy(), bandwidth, fires
        )
        return torch.from_numpy(sums[0]), torch.from_numpy(sums[1])
    of_f.add_(at_zero)[fires.rows, fires.latents] += to_values
    near = (pre - theta).abs() < bandwidth / 2
    of_jump = of_f * near * (theta / bandwidth)
    of_f.mul_(pre > theta).add_(of_jump)
    return -of_jump.sum(0), of_f.sum(0)
