"""The authors' positive tied dictionary, for activations that are almost never negative."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import check_coefficient, register
from sae.dictionaries.tied import Tied


@register("positive_tied")
class PositiveTied(Tied):
    """`Tied` with weights of at least 0, on inputs shifted up by a constant.

    Made for the hidden neurons of MLPs (`site=mlp`): a GELU is never below -0.17, so that after the
    shift inputs, atoms and codes are all non-negative, as in NMF. b starts at -1, as theirs.
    The shift is the centre of `Tied`, -shift in every dimension.

    Source: HoagyC/sparse_coding `mlp_tests.py`, `FunctionalPositiveTiedSAE`.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        l1: Coefficient of the penalty, at least 0.
        shift: Added to every input, in the scaled space (`activations.normalize=none`: in the LM's
            own units, where the authors use 0.18).
        mean: Not used.
        generator: Source of the initial weights.
    """

    options = frozenset({"l1", "shift"})

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l1: float,
        shift: float = 0.18,
        mean: Float[Tensor, " d_in"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        del mean
        offset = torch.full((d_in,), -check_coefficient("sae.shift", shift))
        settings: dict[str, Any] = {"l1": l1, "start_bias": -1.0, "generator": generator}
        super().__init__(d_in, d_sae, centre="mean", mean=offset, **settings)
        with torch.no_grad():
            self.W.abs_()

    @torch.no_grad()
    def constrain_parameters(self) -> None:
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
