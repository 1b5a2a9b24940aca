"""Sizes, start values and kernels: everything a dictionary is built from besides its settings."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import ConfigError

START_SPREADS = -2.3
"""Encoder biases at the start of a short run, in standard deviations of ordinary activations."""
START_BIAS = -1.0
"""The same where the spread is unknown: a sixth of the latents fires instead of half, where entries
of the activations have about unit variance. What a dense start learns, the penalty must undo."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a dictionary.

    Attributes:
        d_in: Width of the activations that it reads.
        d_sae: Number of latents.
        d_out: Width of the target of a transcoder; None where the input is the target.
        layers: Widths of the layers that a crosscoder's vectors consist of; empty for one layer.
    """

    d_in: int
    d_sae: int
    d_out: int | None = None
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.d_sae < 1:
            raise ConfigError(f"d_in={self.d_in} and d_sae={self.d_sae} must both be at least 1.")
        if self.layers and sum(self.layers) != self.d_in:
            raise ConfigError(f"layers={list(self.layers)} must add up to d_in={self.d_in}.")


@dataclass(frozen=True)
class Init:
    """Start of a dictionary.

    Attributes:
        mean: Scaled mean of the training split (of its input, for a transcoder); None: zeros.
        target_mean: Scaled mean of a transcoder's target; None: zeros.
        spread: Standard deviation of ordinary scaled activations (`Stats.spread`); None: unknown.
        long_run: Start as published: encoder biases at 0, encoder rows of full length
            (`LONG_RUN_STEPS`).
        generator: Source of the initial weights.
        kernels: Products that compute codes, as `trainer.kernels` names them.
    """

    mean: Float[Tensor, " d_in"] | None = None
    target_mean: Float[Tensor, " d_out"] | None = None
    spread: float | None = None
    long_run: bool = False
    generator: torch.Generator | None = None
    kernels: str = "auto"

    def bias(self, given: float | None) -> float:
        """Encoder biases at the start: the given one, or the one that suits run and activations."""
        if given is not None:
            return given
        if self.long_run:
            return 0.0
        return START_BIAS if self.spread is None else START_SPREADS * self.spread
