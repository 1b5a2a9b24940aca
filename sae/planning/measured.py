"""How long a harvest takes: one batch of each kind is run now, where the LM is here."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from sae.language.sources import LMSource
from sae.progress import progress
from sae.provenance import content_key
from sae.types import Point


@dataclass(frozen=True)
class Capture:
    """LM passes of a harvest, each up to the last of some points.

    Attributes:
        lm: Where the LM comes from.
        device: Where it runs.
        tokens: Number of tokens of all batches.
        shape: Contexts of a batch, and tokens of a context.
        points: Where activations are read.
    """

    lm: LMSource
    device: str
    tokens: int
    shape: tuple[int, int]
    points: tuple[Point, ...]

    @property
    def kind(self) -> str:
        """The same for batches that take the same time."""
        points = sorted(map(str, self.points))
        return content_key({"lm": self.lm.identity(), "shape": self.shape, "points": points})


@torch.no_grad()
def measure(
    captures: Iterable[Capture], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds a token, by kind; an LM that must be fetched or converted first is left out."""
    kinds = {one.kind: one for one in captures if one.lm.at_hand}
    paces: dict[str, float] = {}
    if not kinds:
        return paces
    with progress("measure one batch of the harvest", len(kinds), "batches") as advance:
        for kind, one in kinds.items():
            lm = one.lm.load(one.device)
            draws = torch.Generator().manual_seed(0)
            batch = torch.randint(lm.vocab_size, one.shape, generator=draws).to(lm.device)
            lm.capture(batch[:1], one.points)  # the first one loads and compiles
            _wait(lm.device)
            start = clock()
            lm.capture(batch, one.points)
            _wait(lm.device)
            paces[kind] = (clock() - start) / batch.numel()
            advance(1)
    return paces


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
