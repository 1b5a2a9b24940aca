"""Contexts, tokens and text, as records show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

Group = Literal["top", "interval", "random", "zero"]


class Shown(NamedTuple):
    """A context that was kept for a latent.

    Args:
        group: `top`: the contexts of largest maximum, without duplicates; `interval`: drawn from
            those whose maximum lies in one interval; `random`: drawn from all contexts; `zero`:
            drawn from those where it never fires.
        context: Number of the context in the split.
        peak: Position of the maximum; -1 where the latent does not fire.
        value: The maximum, in the LM's units; 0 where it does not fire.
        interval: Interval of the maximum, 1 to 10; 0 where it does not fire.
        decile: Decile of the maximum among all positive activations, 1 (strongest) to 10; 0 where
            it does not fire.
        positions: Positions where the latent fires, ascending.
        values: Its activations there.
    """

    group: Group
    context: int
    peak: int
    value: float
    interval: int
    decile: int
    positions: Int[np.ndarray, " firings"]
    values: Float[np.ndarray, " firings"]


class Listed(NamedTuple):
    """Tokens, latents or neurons with a number each, the first one foremost.

    Args:
        ids: Token ids, latents or indices of neurons.
        values: A number for each.
    """

    ids: Int[np.ndarray, " n"]
    values: Shaped[np.ndarray, " n"]


NOTHING = Listed(np.zeros(0, np.int64), np.zeros(0))
"""An empty list: not measured, or nothing there."""


@dataclass(frozen=True)
class Text:
    """The text that records were read on.

    Attributes:
        name: Name to show to people: corpus and split.
        is_training: True if the SAE was trained on it.
        tokens: The contexts.
        counted: True where the row of each position counts; the others have no activation.
        vocabulary: Bytes of each token, by id; tokens may end inside a character.
    """

    name: str
    is_training: bool
    tokens: Int[np.ndarray, "contexts ctx"]
    counted: np.ndarray
    vocabulary: Sequence[bytes]
