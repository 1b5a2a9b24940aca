"""L1 dictionary whose penalty turns from the sum of f into the sum of f^p (arXiv 2408.00113)."""

import torch
from torch import Tensor

from sae.dictionaries.base import PENALTY, register
from sae.dictionaries.codes import Code
from sae.dictionaries.l1 import L1
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.settings import setting

STAGES = 10
"""Number of changes of p."""
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
        self.register_buffer("p", torch.ones((), dtype=torch.float64))
        self.register_buffer("factor", torch.ones((), dtype=torch.float64))

    def encoding(self, x: Tensor, target: Tensor, state: StepState | None = None) -> Encoding:
        """Code and reconstruction of `l1`; also lowers p when its next stage begins."""
        found = super().encoding(x, target)
        if state is not None:
            self._anneal(found.code, state.progress)
        return found

    @torch.no_grad()
    def _anneal(self, code: Code, progress: float) -> None:
        share = (progress - self.config.anneal_start) / (1 - self.config.anneal_start)
        stage = min(STAGES, max(0, int(share * (STAGES + 1))))
        p = 1 - (1 - self.config.p_end) * stage / STAGES
        if p == float(self.p):
            return
        before, after = (_powers(code, power).l1().double().sum() for power in (float(self.p), p))
        if after > 0:  # nothing fired: nothing to keep equal
            self.factor *= before / after
        self.p.fill_(p)

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """`l1` times c times the sum of f^p."""
        powers = _powers(found.code, float(self.p)).l1()
        return {PENALTY: self.config.l1 * powers * self.factor.to(found.code.values.dtype)}


def _powers(code: Code, p: float) -> Code:
    """The code with f^p for f; exactly f where p is 1."""
    if p == 1:
        return code
    return code.with_values((code.values + SMALLEST).pow(p) - SMALLEST**p)
