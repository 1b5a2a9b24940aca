"""Steer the coefficient of a sparsity penalty until the asked L0 is reached."""

import math

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from sae.dictionaries.base import ARCHITECTURES, Dictionary
from sae.errors import ConfigError

PROPORTIONAL = 2.0
"""Gain of the penalty on the present error in log L0."""
INTEGRAL = 40.0
"""Gain of the penalty's base on the error, over the time of a run."""
LARGEST_ERROR = 0.15
"""Larger errors count as this: a code that starts dense is thinned out over some tenths of a run.
Latents that a faster descent pushes below their thresholds do not come back."""
_FARTHEST = math.log(1e4)
"""Largest I: where the code cannot follow (thresholds that learn slowly), it must find back."""


class TargetL0(nn.Module):
    r"""A proportional-integral controller on the logarithm of the coefficient.

    With the error $e = \log(L0 / target)$ of a training batch, the penalty is multiplied by
    $\exp(P e + I)$, and I grows by `INTEGRAL` times e a run. Measured in logarithms one setting
    serves every architecture and site: L0 is about a power of the coefficient. The integral is
    what remains when the error is gone, and what a checkpoint keeps.

    Args:
        target: Wanted mean number of firing latents, above 0.
        dictionary: The dictionary to train.
        steps: Optimiser steps of the run.

    Raises:
        ConfigError: If the architecture has no penalty, or the target cannot be.
    """

    integral: Tensor
    error: Tensor

    def __init__(self, target: float, dictionary: Dictionary, steps: int) -> None:
        super().__init__()
        if dictionary.coefficient is None:
            able = sorted(word for word, cls in ARCHITECTURES.items() if cls.coefficient)
            raise ConfigError(
                f"target_l0={target:g} has no effect with sae={dictionary.architecture}, which has "
                f"no penalty to steer (where there is a k, k is the L0). Drop target_l0, or choose "
                f"sae= one of {', '.join(able)}."
            )
        if not getattr(dictionary.config, dictionary.coefficient) > 0:
            raise ConfigError(
                f"target_l0={target:g} steers {dictionary.coefficient}, which starts at 0. Give a "
                f"{dictionary.coefficient} above 0 to start from."
            )
        if not 0 < target < dictionary.d_sae:
            raise ConfigError(
                f"target_l0={target:g} must be above 0 and below d_sae={dictionary.d_sae}."
            )
        self.target, self.steps = target, steps
        self.register_buffer("integral", torch.zeros((), dtype=torch.float64))
        self.register_buffer("error", torch.zeros((), dtype=torch.float64))

    def gain(self) -> Tensor:
        """The factor of the penalty now, float32."""
        return (self.integral + PROPORTIONAL * self.error).exp().float()

    def coefficient(self, dictionary: Dictionary) -> dict[str, float]:
        """The coefficient that the dictionary is trained with now, by its name."""
        assert dictionary.coefficient is not None
        start = getattr(dictionary.config, dictionary.coefficient)
        return {dictionary.coefficient: start * math.exp(self.integral.item())}

    @torch.no_grad()
    def steer(self, l0: Shaped[Tensor, ""]) -> None:
        """Move the coefficient by the L0 of a batch, once the penalty is warmed up."""
        # a batch in which nothing fires asks for the largest step, not for an infinite one
        error = (l0.double() / self.target).log().clamp(-LARGEST_ERROR, LARGEST_ERROR)
        self.error.copy_(error)
        self.integral += INTEGRAL / self.steps * error
        self.integral.clamp_(-_FARTHEST, _FARTHEST)
