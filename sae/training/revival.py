"""New starts of dead latents: which inputs they get, and what is set from these.

A strategy is named by `resample.strategy`, a key of `STRATEGIES`; a new one is one more class
here. When it acts, what counts as dead and which inputs it chooses among is `resampling.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.kernels import unit_rows

ENCODED_AT_ONCE = 8192
"""Vectors of the sample."""


class Strategy(ABC):
    """Chooses one input for every dead latent and starts the latent from it."""

    sets_decoder: ClassVar[bool]
    """True if it writes into the decoder; if not, encoder and decoder must be apart."""

    @abstractmethod
    def choose(
        self,
        dictionary: Dictionary,
        x: Float[Tensor, "n width"],
        count: int,
        generator: Generator,
    ) -> Int[Tensor, " count"]:
        """Indices of `count` of the inputs, one for each dead latent in order.

        Args:
            dictionary: As it is now.
            x: Random scaled training vectors.
            count: Number of dead latents.
            generator: CPU generator, for strategies that draw.
        """

    @abstractmethod
    def start(
        self,
        dictionary: Dictionary,
        latents: Int[Tensor, " count"],
        x: Float[Tensor, "count width"],
        alive: Bool[Tensor, " d_sae"],
    ) -> None:
        """Set the weights of the dead `latents`, each from its input; no other is touched."""


@dataclass(frozen=True)
class Drawn(Strategy):
    """Neuron resampling, rules 2 to 6 (Towards Monosemanticity, 2023; see `resampling.py`).

    Inputs are drawn by their squared loss; `Dictionary.revive` sets decoder, encoder and bias.

    Attributes:
        toward: `input` as published, or `residual`: x - x_hat, what the dictionary misses of it.
    """

    sets_decoder = True
    toward: str = "input"

    def __post_init__(self) -> None:
        if self.toward not in ("input", "residual"):
            raise ConfigError(f"resample.toward={self.toward!r} must be input or residual.")

    def choose(self, dictionary: Dictionary, x: Tensor, count: int, generator: Generator) -> Tensor:
        """Rules 2 and 3: the losses of the sample, and the draw by their squares."""
        losses = _by_parts(dictionary.row_losses, x)
        for side in dictionary.split(x):  # a vector of zeros has no direction to point at
            losses[side.norm(dim=1) == 0] = 0.0
        return draw_inputs(losses, count, generator)

    def start(self, dictionary: Dictionary, latents: Tensor, x: Tensor, alive: Tensor) -> None:
        """Rules 4 to 6; what is reconstructed exactly has no residual, and revives nothing."""
        x, target = dictionary.split(x)
        if self.toward == "residual":
            target = target - dictionary(x).float()
        points = target.norm(dim=1) > 0
        dictionary.revive(latents[points], x[points], unit_rows(target[points]), alive)


@dataclass(frozen=True)
class WorstExample(Strategy):
    """The authors' re-initialisation: dead encoders take the inputs that are reconstructed worst.

    The encoder row becomes the input itself times 0.2, divided by the mean norm of all encoder
    rows; decoder rows and biases stay. As in their code the input is neither centred nor brought
    to length 1, so that what comes out depends on the scale of the activations.

    Source: `process_reinit` in experiments/huge_batch_size.py of the authors of arXiv 2309.08600.
    They collect the worst inputs while a chunk of data is trained on; here the current dictionary
    is measured on a random sample, so that a resumed run needs no memory of them.
    """

    sets_decoder = False
    share = 0.2

    def choose(self, dictionary: Dictionary, x: Tensor, count: int, generator: Generator) -> Tensor:
        """The worst first, by squared error alone; from the first again where they run out."""
        errors = _by_parts(lambda part: _errors(dictionary, part), x)
        order = errors.argsort(descending=True, stable=True)
        return order[torch.arange(count, device=order.device) % len(order)]

    def start(self, dictionary: Dictionary, latents: Tensor, x: Tensor, alive: Tensor) -> None:
        """Encoder rows only."""
        assert dictionary.encoder is not None  # see `ResampleSettings.check`
        encoder = dictionary.get_parameter(dictionary.encoder)
        encoder[latents] = dictionary.split(x)[0] * (self.share / encoder.norm(dim=1).mean())


STRATEGIES: dict[str, type[Strategy]] = {"drawn": Drawn, "worst_example": WorstExample}


def draw_inputs(
    losses: Float[Tensor, " n"], count: int, generator: Generator
) -> Int[Tensor, " count"]:
    """Rule 3: indices drawn with probability proportional to loss squared.

    No input is drawn twice while there are enough of them, so that no two latents start equal.
    """
    weights = losses.double().square()
    total = weights.sum()
    weights = weights / total if total > 0 else torch.ones_like(weights)
    enough = int((weights > 0).sum()) >= count
    return torch.multinomial(weights.cpu(), count, replacement=not enough, generator=generator)


def _errors(dictionary: Dictionary, batch: Float[Tensor, "n width"]) -> Float[Tensor, " n"]:
    x, target = dictionary.split(batch)
    return (target - dictionary(x).float()).square().mean(dim=1)


def _by_parts(measure: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([measure(part).float() for part in x.split(ENCODED_AT_ONCE)])
