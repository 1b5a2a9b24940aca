"""Neuron resampling: dead latents start again from inputs that are reconstructed badly.

The published rules (Towards Monosemanticity, 2023, appendix "Neuron resampling"):

1. at set times, take the latents that did not fire at all during a window before;
2. compute the loss of the current model on a random sample of inputs;
3. draw inputs with probability proportional to the square of their loss;
4. each dead latent takes one drawn input: decoder row := its direction,
5. encoder := the same direction times 0.2 of the mean norm of the alive encoder rows,
6. encoder bias := 0 (4 to 6 are `Dictionary.revive`; see `Tied.revive` for tied weights);
7. Adam's moments are reset for exactly the entries that changed.

Each rule is a function here or a method there, and is tested by itself. `toward="residual"` departs
from rule 4: the direction is that of x - x_hat, what the dictionary misses of the drawn input.
Where a few tokens have massive activations (2 % of the default LM's, at six times the norm of the
rest) nearly all drawn inputs are such tokens, and latents pointed at them all fire on all of them:
the loss rises a thousandfold (docs/adr/0002 has the measurement). In a transcoder the direction is
that of the target, or of what is missed of it; the encoder points at the input (`Untied.revive`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.dictionaries.base import Dictionary, LatentParameter
from sae.errors import ConfigError
from sae.kernels import unit_rows
from sae.training.schedules import span_tokens

_ENCODE_AT_ONCE = 8192


@dataclass(frozen=True)
class ResampleSettings:
    """When to resample and what counts as dead; spans are tokens or shares of the run ("10%").

    Attributes:
        at_tokens: Times, counted in tokens seen; empty for never.
        dead_after_tokens: A latent that did not fire for so long is dead. Used by the resampler
            and by the logged dead share alike.
        sample_tokens: Number of random training vectors whose loss is computed (rule 2).
        toward: `input` as published, or `residual`.
    """

    at_tokens: Sequence[int | float | str] = ()
    dead_after_tokens: int | float | str = "10%"
    sample_tokens: int | float | str = 819_200
    toward: str = "input"

    def __post_init__(self) -> None:
        if self.toward not in ("input", "residual"):
            raise ConfigError(f"resample.toward={self.toward!r} must be input or residual.")

    def resolve(self, total_tokens: int) -> "ResampleSettings":
        """The same in plain tokens, for a run over `total_tokens`.

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
        return ResampleSettings(at, window, sample, self.toward)

    def due(self, before: int, after: int) -> bool:
        """Whether a resolved time lies in the tokens `(before, after]`."""
        return any(before < int(time) <= after for time in self.at_tokens)


def dead_latents(tokens_since_fired: Int[Tensor, " d_sae"], window: int) -> Bool[Tensor, " d_sae"]:
    """Rule 1: latents that did not fire in the last `window` tokens.

    Example:
        >>> dead_latents(torch.tensor([0, 99, 100]), 100).tolist()
        [False, False, True]
    """
    return tokens_since_fired >= window


def draw_inputs(
    losses: Float[Tensor, " n"], count: int, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Rule 3: indices drawn with probability proportional to loss squared.

    No input is drawn twice while there are enough of them, so that no two latents start equal.
    """
    weights = losses.double().square()
    total = weights.sum()
    weights = weights / total if total > 0 else torch.ones_like(weights)
    enough = int((weights > 0).sum()) >= count
    return torch.multinomial(weights.cpu(), count, replacement=not enough, generator=generator)


def reset_adam_rows(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[LatentParameter],
    latents: Int[Tensor, " n"],
) -> None:
    """Rule 7: zero every moment of the rows that belong to `latents`, and of no other."""
    for parameter, axis in parameters:
        for value in optimizer.state.get(parameter, {}).values():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value.index_fill_(axis, latents.to(value.device), 0.0)


@torch.no_grad()
def resample(
    dictionary: Dictionary,
    optimizer: torch.optim.Optimizer,
    dead: Bool[Tensor, " d_sae"],
    inputs: Callable[[], Float[Tensor, "n width"]],
    generator: torch.Generator,
    toward: str = "input",
) -> Int[Tensor, " n"]:
    """Apply rules 2 to 7 to the `dead` latents and return their indices.

    Args:
        dictionary: Edited in place.
        optimizer: Its moments are reset for the revived rows.
        dead: Mask of dead latents (rule 1).
        inputs: Gives the random sample of scaled training vectors; called only when needed.
        generator: CPU generator of the draw.
        toward: `input` or `residual`: what the revived latents are pointed at.
    """
    latents = dead.nonzero().flatten()
    if len(latents) == 0:
        return latents
    x = inputs().to(dead.device)
    losses = torch.cat([dictionary.row_losses(part).float() for part in x.split(_ENCODE_AT_ONCE)])
    for side in dictionary.split(x):  # a vector of zeros has no direction to point at
        losses[side.norm(dim=1) == 0] = 0.0
    drawn, target = dictionary.split(x[draw_inputs(losses, len(latents), generator).to(x.device)])
    if toward == "residual":
        target = target - dictionary(drawn).float()
    dictionary.revive(latents, drawn, unit_rows(target), ~dead)
    reset_adam_rows(optimizer, dictionary.latent_parameters(), latents)
    return latents
