"""The authors' positive tied dictionary, for activations that are almost never negative."""

import torch
from torch import Tensor

from sae.dictionaries.base import Dictionary, register
from sae.dictionaries.penalty import L1Config
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.tied import Tied
from sae.settings import setting


@register("positive_tied")
class PositiveTied(Tied):
    """`Tied` with weights of at least 0, on inputs shifted up by a constant.

    Made for the hidden neurons of MLPs (`site=mlp`): a GELU is never below -0.17, so that after the
    shift inputs, atoms and codes are all non-negative, as in NMF. b starts at -1, as theirs.
    The shift is the centre of `Tied`, -shift in every dimension.

    Source: HoagyC/sparse_coding `mlp_tests.py`, `FunctionalPositiveTiedSAE`.
    """

    class Config(L1Config, Dictionary.Config):
        """Settings."""

        shift: float = setting(
            0.18,
            ge=0,
            help="added to every input, in the scaled space; the authors' 0.18 is for "
            "activations.normalize=none",
        )

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        Dictionary.__init__(self, config, shape, init)
        self._start(torch.full((shape.d_in,), -config.shift), -1.0, init.generator)
        with torch.no_grad():
            self.W.abs_()

    @torch.no_grad()
    def after_step(self) -> None:
        """No weight below 0."""
        self.W.clamp_(min=0)

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
        """As in `Tied`, toward the positive part of the direction."""
        positive = direction.clamp_min(0)
        norms = positive.norm(dim=1, keepdim=True)
        # a direction without a positive part: any atom of the cone will do, the mean one is inside
        flat = torch.full_like(positive, positive.shape[1] ** -0.5)
        toward = torch.where(norms > 0, positive / norms.clamp_min(1e-8), flat)
        super().revive(latents, x, toward, alive)
