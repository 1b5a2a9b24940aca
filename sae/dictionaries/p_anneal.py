"""L1 dictionary whose penalty turns from the sum of f into the sum of f^p (arXiv 2408.00113)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import NOMINAL, Moment, StepOutput, register
from sae.dictionaries.codes import Code
from sae.dictionaries.l1 import L1
from sae.dictionaries.shape import Init, Shape
from sae.settings import setting

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
    """

    class Config(L1.Config):
        """Settings."""

        p_end: float = setting(0.2, gt=0, le=1, help="last p")
        anneal_start: float = setting(0.2, ge=0, lt=1, help="share of the run after which p falls")

    p: Tensor
    factor: Tensor

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.p_end, self.anneal_start = config.p_end, config.anneal_start
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
