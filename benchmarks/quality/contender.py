"""A contender: a method of a library, how it is told its sparsity, and what it trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from benchmarks.quality.data import Data

Control = Literal["k", "target", "coefficient"]
"""How L0 is set: by the architecture, by the method's own L0 target, or only by a penalty."""


@dataclass(frozen=True)
class Setting:
    """Settings that are tuned.

    Attributes:
        lr: Peak learning rate.
        value: k, target L0 or penalty, as the method's control says.
        seed: Initial weights.
    """

    lr: float
    value: float
    seed: int


@dataclass(frozen=True)
class Fitted:
    """A trained dictionary in its saved form: thresholds, no selection within a batch.

    Attributes:
        encode: Codes [batch d_sae] of vectors times `factor`.
        decode: Reconstructions of vectors times `factor`.
        atoms: Decoder rows of any length.
        factor: Between the LM's own units and those of `encode` and `decode`.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    atoms: Float[Tensor, "d_sae d_in"]
    factor: float


@dataclass(frozen=True)
class Contender:
    """A method of a library.

    Attributes:
        name: Of the method.
        library: `ours`, `authors` or a peer.
        family: Word of this project's architecture that it is compared with.
        control: How its L0 is set.
        lr: The library's own default, given d_sae.
        start: First penalty of the search, where the control is a coefficient.
        fit: Trains by the library's own trainer.
        on_request: Takes part only where it is named.
    """

    name: str
    library: str
    family: str
    control: Control
    lr: Callable[[int], float]
    start: float
    fit: Callable[[Data, int, Setting], Fitted]
    on_request: bool = False

    @property
    def key(self) -> str:
        """For the command line and the records."""
        return f"{self.library}/{self.name}"


def share(steps: int, part: float, at_most: int) -> int:
    """A warm-up as the library has it, but no more than this part of a shorter run."""
    return max(1, min(at_most, round(part * steps)))
