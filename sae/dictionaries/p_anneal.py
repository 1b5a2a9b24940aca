"""L1 dictionary whose penalty turns from the sum of f into the sum of f^p (arXiv 2408.00113)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import NOMINAL, Moment, StepOutput, check_coefficient, register
from sae.dictionaries.codes import Code
from sae.dictionaries.l1 import L1
from sae.dictionaries.untied import START_BIAS
from sae.errors import ConfigError

STAGES = 10
"""How often p changes."""
SMALLEST = 1e-3
"""Added to f, in the scaled space: the slope of f^p at 0 is infinite."""


@register("p_anneal")
class PAnneal(L1):
    r"""As `l1`, with the penalty $l1 \cdot c \sum f^p$: p falls from 1 to `p_end` in ten stages.

    The smaller p, the closer the penalty is to a count of what fires, and the less it shrinks what
    fires strongly. p falls over the part of the run after `anneal_start`; when it changes, c is
    chosen so that the penalty of the present batch stays what it was.

    Source: Karvonen et al. 2024 (arXiv 2408.00113), section 3.2.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        l1: Coefficient of the penalty, at least 0.
        p_end: Last p, above 0 and at most 1.
        anneal_start: Share of the run after which p begins to fall, from 0 to below 1.
        start_bias: Encoder biases at the start.
        mean: Scaled mean of the training split.
        generator: Source of the initial weights.
    """

    options = L1.options | {"p_end", "anneal_start"}
    p: Tensor
    factor: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l1: float,
        p_end: float = 0.2,
        anneal_start: float = 0.2,
        start_bias: float = START_BIAS,
        mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae, l1=l1, start_bias=start_bias, mean=mean, generator=generator)
        if not 0 < check_coefficient("sae.p_end", p_end) <= 1:
            raise ConfigError(f"sae.p_end={p_end!r} must be above 0 and at most 1.")
        if not check_coefficient("sae.anneal_start", anneal_start) < 1:
            raise ConfigError(f"sae.anneal_start={anneal_start!r} must be from 0 to below 1.")
        self.p_end, self.anneal_start = p_end, anneal_start
        self.register_buffer("p", torch.ones((), dtype=torch.float64))
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))

    def training_output(
        self, batch: Float[Tensor, "batch width"], moment: Moment = NOMINAL
    ) -> StepOutput:
        """Moves p on where it is time, then as `l1`."""
        x, target = self.split(batch)
        code, x_hat = self._encode_decode(x)
        self._anneal(code, moment.progress)
        return self._output(x, target, code, x_hat, moment)

    @torch.no_grad()
    def _anneal(self, code: Code, progress: float) -> None:
        share = (progress - self.anneal_start) / (1 - self.anneal_start)
        stage = min(STAGES, max(0, int(share * (STAGES + 1))))
        p = 1 - (1 - self.p_end) * stage / STAGES
        if p == float(self.p):
            return
        before, after = (_powers(code, power).l1().double().sum() for power in (float(self.p), p))
        if after > 0:  # nothing fired: nothing to keep equal
            self.factor *= before / after
        self.p.fill_(p)

    def row_penalties(self, code: Code) -> dict[str, Float[Tensor, " batch"]]:
        """`l1` times c times the sum of f^p."""
        return {
            "sparsity": self.l1
            * _powers(code, float(self.p)).l1()
            * self.factor.to(code.values.dtype)
        }


def _powers(code: Code, p: float) -> Code:
    """The code with f^p for f; exactly f where p is 1."""
    if p == 1:
        return code
    return code.with_values((code.values + SMALLEST).pow(p) - SMALLEST**p)
