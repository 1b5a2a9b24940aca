"""Neuron resampling: dead latents start again from inputs that are reconstructed badly.

The published rules (Towards Monosemanticity, 2023, appendix "Neuron resampling"):

1. at set times, take the latents that did not fire at all during a window before;
2. compute the loss of the current model on a random sample of inputs;
3. draw inputs with probability proportional to the square of their loss;
4. each dead latent takes one drawn input: decoder row := its direction,
5. encoder := the same direction times 0.2 of the mean norm of the alive encoder rows,
6. encoder bias := 0 (4 to 6 are `Dictionary.revive`; see `Tied.revive` for tied weights);
7. Adam's moments are reset for exactly the entries that changed.

Each rule is a function or a method here, in `revival.py` or in the dictionaries, and is tested
by itself. Rules 2 to 6 are the strategy `drawn`, of which `toward="residual"` departs from rule 4:
the direction is that of x - x_hat, what the dictionary misses of the drawn input. Where a few
tokens have massive activations (2 % of the default LM's, at six times the norm of the rest) nearly
all drawn inputs are such tokens, and latents pointed at them all fire on all of them: the loss
rises a thousandfold (docs/adr/0002 has the measurement). The strategy `worst_example` is the
authors' own; rules 1 and 7 are the same for it.
In a transcoder the direction is that of the target, or of what is missed of it; the encoder points
at the input (`Untied.revive`).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.settings import Settings, Span, setting
from sae.training.revival import STRATEGIES, Drawn, Strategy
from sae.training.schedules import span_tokens


class ResampleSettings(Settings):
    """Times of resampling and the limit of death; spans are tokens or shares of the run ("10%")."""

    where = "resample."

    at_tokens: list[Span] = setting(
        ["20%", "40%", "60%"], help="times, counted in tokens seen; [] for never"
    )
    dead_after_tokens: Span = setting(
        "10%",
        help="a latent that did not fire for so long is dead, for the resampler and the logged "
        "dead share alike",
    )
    sample_tokens: Span = setting(
        65536, help="number of random training vectors whose loss is computed (rule 2)"
    )
    toward: Literal["input", "residual"] | None = setting(
        None, help="of the strategy drawn: input as published (null), or residual"
    )
    strategy: Literal["drawn", "worst_example"] = setting(
        "drawn", help="rules by which latents are revived"
    )

    @model_validator(mode="after")
    def _toward_needs_drawn(self) -> "ResampleSettings":
        if self.toward is not None and self.strategy != "drawn":
            raise ConfigError(
                f"resample.toward={self.toward} has no effect with resample.strategy="
                f"{self.strategy}. Drop it, or use resample.strategy=drawn."
            )
        return self

    def build(self) -> Strategy:
        """The strategy that the settings name."""
        return Drawn(self.toward) if self.toward is not None else STRATEGIES[self.strategy]()

    def check(self, architecture: type[Dictionary], frozen_decoder: bool) -> None:
        """Refuse dictionaries of a class that cannot be resampled so.

        Raises:
            ConfigError: If the weights that the strategy sets are frozen, or tied to others.
        """
        if not self.at_tokens:
            return
        if not self.build().sets_decoder and architecture.encoder is None:
            raise ConfigError(
                f"resample.strategy={self.strategy} sets encoders and leaves decoders, and in "
                f"sae={architecture.architecture} they are one matrix. Use sae=l1 or another "
                "untied SAE, or resample=scaled."
            )
        if self.build().sets_decoder and frozen_decoder:
            raise ConfigError(
                "sae.frozen_decoder=true keeps the decoder as it was drawn, but resampling would "
                "set rows of it. Use resample=none, or resample=worst_example, which sets encoders."
            )

    def resolve(self, total_tokens: int) -> "ResampleSettings":
        """These settings with all spans in tokens, for a run over `total_tokens`.

        Raises:
            ConfigError: If a span cannot be read or the window is empty.
        """
        window = span_tokens(self.dead_after_tokens, total_tokens, "resample.dead_after_tokens")
        sample = span_tokens(self.sample_tokens, total_tokens, "resample.sample_tokens")
        if window < 1 or sample < 1:
            raise ConfigError(
                f"resample.dead_after_tokens={self.dead_after_tokens!r} and "
                f"resample.sample_tokens={self.sample_tokens!r} must both be at least one token."
            )
        if window > total_tokens:
            raise ConfigError(
                f"resample.dead_after_tokens={window:,} is longer than the run of {total_tokens:,} "
                "tokens: no latent could ever count as dead. Train longer, or use resample=scaled."
            )
        at = sorted(span_tokens(t, total_tokens, "resample.at_tokens") for t in self.at_tokens)
        if at and at[-1] >= total_tokens:
            raise ConfigError(
                f"resample.at_tokens={at[-1]:,} has no effect in a run of {total_tokens:,} tokens. "
                "Train longer, or use resample=scaled."
            )
        return self.model_copy(
            update={"at_tokens": at, "dead_after_tokens": window, "sample_tokens": sample}
        )

    def due(self, before: int, after: int) -> bool:
        """True if a resolved time lies in the tokens `(before, after]`."""
        return any(before < int(time) <= after for time in self.at_tokens)


def dead_latents(tokens_since_fired: Int[Tensor, " d_sae"], window: int) -> Bool[Tensor, " d_sae"]:
    """Rule 1: latents that did not fire in the last `window` tokens.

    Example:
        >>> dead_latents(torch.tensor([0, 99, 100]), 100).tolist()
        [False, False, True]
    """
    return tokens_since_fired >= window


def reset_adam_rows(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    latents: Int[Tensor, " n"],
) -> None:
    """Rule 7: zero every moment of the rows that belong to `latents`, and of no other."""
    for parameter in parameters:
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.index_fill_(0, latents.to(value.device), 0.0)


@torch.no_grad()
def resample(
    dictionary: Dictionary,
    optimizer: torch.optim.Optimizer,
    dead: Bool[Tensor, " d_sae"],
    inputs: Callable[[], Float[Tensor, "n width"]],
    generator: torch.Generator,
    strategy: Strategy | None = None,
) -> Int[Tensor, " n"]:
    """Reinitialise the `dead` latents (rules 2 to 7) and return their indices.

    Args:
        dictionary: Edited in place.
        optimizer: Its moments are reset for the revived rows.
        dead: Mask of dead latents (rule 1).
        inputs: Gives the random sample of scaled training vectors; called only when needed.
        generator: CPU generator of the draw.
        strategy: Chooses the inputs and sets the weights; default: as published.
    """
    latents = dead.nonzero().flatten()
    if len(latents) == 0:
        return latents
    strategy = strategy or Drawn()
    x = inputs().to(dead.device)
    chosen = x[strategy.choose(dictionary, x, len(latents), generator).to(x.device)]
    strategy.start(dictionary, latents, chosen, ~dead)
    reset_adam_rows(optimizer, dictionary.latent_parameters(), latents)
    return latents
