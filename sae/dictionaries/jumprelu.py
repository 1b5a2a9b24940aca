"""JumpReLU dictionary: each latent learns the threshold above which it fires (arXiv 2407.14435)."""

from math import log, sqrt
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from sae.dictionaries.base import PENALTY, register
from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.penalty import PenaltyConfig
from sae.dictionaries.products import sparse_enough
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.dictionaries.untied import ENCODER_START, GRADIENT_NORM, Untied
from sae.kernels import (
    Pattern,
    atoms_sum,
    backend_for,
    jump_gradients_,
    latent_entries,
    latent_values,
)
from sae.settings import setting

PACE = 4.0
"""Pace of a threshold's logarithm, relative to a weight: theta = e^(PACE t), t is trained.

Adam moves a parameter by about the learning rate a step, so that a logarithm that must rise by 3
takes 3,000 steps at 1e-3. The published runs have a hundred thousand; runs here may have hundreds.
"""
PULL = 3e-6
"""Weight of the term for dead latents beside an error summed over d_in; ours is a mean."""
STARTS = {"tanh": (0.7, 2.5), "l0": (1e-3, 1e-3)}
"""Threshold at the start and bandwidth by penalty; those of `l0` are for rows of length 1."""
_ROWS = 512  # of a batch, whose pre-activations the backward pass goes through at once


@register("jumprelu")
class JumpReLU(Untied):
    r"""$f = \pi \cdot 1[\pi > \theta]$ with learned $\theta$; the penalty counts what fires.

    Neither the jump nor the count has a gradient, so that thresholds learn by straight-through
    estimates with a rectangular kernel K of width ε (`bandwidth`):
    $\partial f/\partial\theta = -(\theta/\epsilon) K((\pi-\theta)/\epsilon)$ and
    $\partial 1[\pi>\theta]/\partial\theta = -(1/\epsilon) K((\pi-\theta)/\epsilon)$.

    `penalty=l0` (arXiv 2407.14435, equations 9 to 12) is `l0_coefficient` times the number of
    latents that fire. `penalty=tanh` (Conerly et al., Circuits Updates, January 2025) is
    `l0_coefficient` times the sum of tanh(4 f); there the jump's estimate reaches the
    pre-activations, too, $\partial f/\partial\pi = 1[\pi>\theta] + (\theta/\epsilon) K$, and a
    small term pulls dead latents toward their thresholds: `PULL` / d_in times the sum of
    relu(θ - π).

    The second source, whose activations have the scale of ours (mean ||x||^2 = d_in), starts with
    thresholds of 0.1 and has a bandwidth of 2. Here the start is raised for a lower FVU and fewer
    silent latents, the bandwidth for more of the true features, at the cost of some FVU
    (docs/reference/architectures.md). The first source has 0.001 for both where the mean of
    ||x||^2 is 1, so that `l0` has 0.001 sqrt(d_in) here.
    """

    class Config(PenaltyConfig, Untied.Config):
        """Settings."""

        l0_coefficient: float = setting(3e-4, ge=0, help="coefficient of the penalty")
        penalty: Literal["l0", "tanh"] = setting("tanh", help="form of the count: l0 or tanh(4 f)")
        bandwidth: float | None = setting(
            None, gt=0, help="width of the kernel, in the scaled space; null: by the penalty"
        )
        threshold: float | None = setting(
            None, gt=0, help="thresholds at the start, in the scaled space; null: by the penalty"
        )

    activation, coefficient = "jumprelu", "l0_coefficient"
    per_latent = (*Untied.per_latent, "t")
    gradient_norm = GRADIENT_NORM
    encoder_start = ENCODER_START

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        unit = sqrt(shape.d_in) if config.penalty == "l0" else 1.0
        threshold, bandwidth = (suits * unit for suits in STARTS[config.penalty])
        self.bandwidth = config.bandwidth or bandwidth
        self.start = log(config.threshold or threshold) / PACE
        self.t = nn.Parameter(torch.full((shape.d_sae,), self.start))

    def _pre(self, x: Tensor) -> tuple[Code, Tensor]:
        """Pre-activations of all that fires or is within reach of the kernel, and thresholds."""
        centred, rows, bias = self.encoder_terms(x)
        theta, pre = self.thresholds(), linear(centred, rows, bias)
        pattern = sparse_enough(pre, self.kernels, theta - self.bandwidth / 2)
        if pattern is None:
            return DenseCode(pre), theta
        values = latent_values(centred, rows, bias, pattern)
        return SparseCode(pattern, values), latent_entries(theta, pattern)

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Values above their thresholds."""
        return self._code(*self._pre(x))

    def encoding(self, x: Tensor, target: Tensor, state: StepState | None = None) -> Encoding:
        """Code and reconstruction; in training with estimated gradients of the thresholds."""
        pre, theta = self._pre(x)
        fires = None if state is None else self._firing(pre, theta)
        if state is None or fires is None:
            code = self._code(pre, theta)
            x_hat = self.reconstruct(code, x)
        else:  # tanh(4 f) rises by 4 where f is 0
            at_zero = 4 * self.config.l0_coefficient * state.penalty / len(x)
            values, atoms = _JumpStep.apply(
                *self.encoder_terms(x), theta, self.W_dec, pre.values.detach(), fires,
                self.bandwidth, at_zero,
            )  # pyright: ignore[reportGeneralTypeIssues]  # fmt: skip
            code, x_hat = SparseCode(fires, values), atoms + self.base(x)
        if self.config.penalty == "tanh":
            return Encoding(x, target, code, x_hat)
        counted: Any = _Fires.apply(pre.values, theta, self.bandwidth)
        return Encoding(x, target, code, x_hat, pre.with_values(counted))

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """`l0_coefficient` times the count of what fires, or times the sum of tanh(4 f)."""
        code = found.other or found.code.with_values(torch.tanh(4 * found.code.values))
        terms = {PENALTY: self.config.l0_coefficient * code.sums()}
        if self.config.penalty == "tanh" and state.dead is not None:
            terms["pull"] = self._pull(found.x, state.dead)
        return terms

    def _firing(self, pre: Code, theta: Tensor) -> Pattern | None:
        """Firing pairs of dense pre-activations, if they are few; for `penalty=tanh`."""
        dense = isinstance(pre, DenseCode) and pre.values.dtype in (
            self.W_dec.dtype,
            torch.bfloat16,
        )
        if self.config.penalty != "tanh" or not dense:
            return None
        return sparse_enough(pre.values, self.kernels, theta)

    def _pull(self, x: Tensor, dead: Tensor) -> Tensor:
        """`PULL` / d_in times what the dead latents lack to their thresholds."""
        latents = dead.nonzero().flatten()
        centred, rows, bias = self.encoder_terms(x)
        pre = linear(centred, rows[latents], bias[latents])
        lack = (self.thresholds()[latents] - pre).relu().sum(dim=1).mean()
        return PULL / len(self.b_dec) * lack

    def _code(self, pre: Code, theta: Tensor) -> Code:
        to_pre = self.config.penalty == "tanh"
        return pre.with_values(_Jump.apply(pre.values, theta, self.bandwidth, to_pre))  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
        """As in `Untied`; the threshold is that of the start."""
        super().revive(latents, x, direction, alive)
        self.t[latents] = self.start

    def thresholds(self) -> Float[Tensor, " d_sae"]:
        """The learned thresholds."""
        return (PACE * self.t).exp()


def _near(pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    return ((pre - theta).abs() < bandwidth / 2).to(pre.dtype)


def _like(grad: Tensor, theta: Tensor) -> Tensor:
    """Summed over the batch where there is one threshold for a column of it."""
    return grad.sum(0) if theta.dim() < grad.dim() else grad


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float, to_pre: bool) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth, ctx.to_pre = bandwidth, to_pre
        return pre * (pre > theta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (pre, theta), grad = ctx.saved_tensors, grads[0]
        of_jump = theta / ctx.bandwidth * _near(pre, theta, ctx.bandwidth) * grad
        of_pre = grad * (pre > theta)
        return of_pre + of_jump if ctx.to_pre else of_pre, _like(-of_jump, theta), None, None


class _JumpStep(torch.autograd.Function):
    """`linear`, `_Jump` and the sum of the atoms where more pairs are in reach than fire.

    What fires makes the reconstruction and the decoder's gradient. Two dense products are left in
    the backward pass, since every pair in reach passes its share on to the encoder: by parts of the
    batch that stay in the cache. They are in the dtype of `pre`, which under autocast is bfloat16;
    the values of what fires are computed again then. `at_zero`: gradient that the penalty gives an
    f of 0.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor, bias: Tensor, theta: Tensor, W_dec: Tensor, pre: Tensor,
        fires: Pattern, bandwidth: float, at_zero: float | Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        if pre.dtype == rows.dtype:
            values = pre[fires.rows, fires.latents]
        else:
            values = latent_values(x, rows, bias, fires)
        ctx.save_for_backward(x, rows, theta, W_dec, pre, values)
        ctx.fires, ctx.bandwidth, ctx.at_zero = fires, bandwidth, at_zero
        return values, atoms_sum(values, W_dec, fires)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, rows, theta, W_dec, pre, values), fires = ctx.saved_tensors, ctx.fires
        to_values, error = grads[0] - ctx.at_zero, grads[1].contiguous()
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_rows, of_theta, of_bias = (torch.zeros_like(t) for t in (rows, theta, theta))
        low_x, low_rows, low_error, low_W = (t.to(pre.dtype) for t in (x, rows, error, W_dec))
        buffer = pre.new_empty(min(_ROWS, len(pre)), pre.shape[1])
        for start in range(0, len(pre), _ROWS):
            end = min(start + _ROWS, len(pre))
            part, (firing, pairs) = slice(start, end), fires.part(start, end)
            of_pre = torch.mm(low_error[part], low_W.T, out=buffer[: end - start])
            sums = jump_gradients_(
                of_pre, to_values[pairs], ctx.at_zero, pre[part], theta, ctx.bandwidth, firing
            )
            of_theta, of_bias = of_theta + sums[0], of_bias + sums[1]
            if pre.dtype == rows.dtype:
                of_rows.addmm_(of_pre.T, x[part])
            else:
                of_rows += of_pre.T @ low_x[part]
            if of_x is not None:
                of_x[part] = of_pre @ low_rows
        of_atoms = None
        if ctx.needs_input_grad[4]:
            of_atoms = backend_for(pre.device).latents_sum(values, error, fires)
        return of_x, of_rows, of_bias, of_theta, of_atoms, None, None, None, None


class _Fires(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (pre, theta), grad = ctx.saved_tensors, grads[0]
        of_theta = -_near(pre, theta, ctx.bandwidth) / ctx.bandwidth * grad
        return None, _like(of_theta, theta), None
