"""How long passes of an LM take: one batch of each kind is run now, where the LM is here."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.language.lm import LanguageModel
from sae.language.sources import LMSource
from sae.metrics.next_token import ABLATIONS, NextToken
from sae.progress import progress
from sae.provenance import content_key
from sae.types import Ends, Point


@dataclass(frozen=True)
class Passes:
    """Batches of one kind.

    Attributes:
        lm: Where the LM comes from.
        device: Where it runs.
        tokens: Of all batches.
        shape: Contexts of a batch, and tokens of a context.
        what: Is done with a batch.
        run: Does it, with tokens of that shape.
    """

    lm: LMSource
    device: str
    tokens: int
    shape: tuple[int, int]
    what: str
    run: Callable[[LanguageModel, Tensor], object]

    @property
    def kind(self) -> str:
        """The same for batches that take the same time."""
        return content_key({"lm": self.lm.identity(), "shape": self.shape, "what": self.what})


def capturing(
    lm: LMSource, device: str, tokens: int, shape: tuple[int, int], points: Sequence[Point]
) -> Passes:
    """A harvest: one pass that ends at the last of these points."""
    what = f"capture {', '.join(sorted(map(str, points)))}"
    return Passes(lm, device, tokens, shape, what, lambda lm, batch: lm.capture(batch, points))


def predicting(
    lm: LMSource, device: str, tokens: int, shape: tuple[int, int], ends: Ends, passes: int
) -> Passes:
    """Next-token metrics without their SAE: a clean pass, and others with something spliced in."""

    def run(lm: LanguageModel, batch: Tensor) -> None:
        reads = () if ends.point else ends.reads
        clean = dict.fromkeys(reads, lambda activation: activation)
        spliced = dict.fromkeys(ends.writes, torch.zeros_like)
        logits = lm.logits_under(batch, [clean, *[spliced] * (passes - 1)])
        metric, document = NextToken().to(lm.device), torch.zeros_like(batch)
        first = next(logits)
        metric.update(batch, document, {"clean": first, "sae": next(logits)})
        for name, ablated in zip(ABLATIONS, logits, strict=False):
            metric.update_ablation(name, batch, document, first, ablated)

    return Passes(lm, device, tokens, shape, f"{passes} predictions at {ends}", run)


def measure(
    passes: Iterable[Passes], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds a token, by kind; an LM that must be fetched or converted first is left out."""
    by_lm: dict[str, dict[str, Passes]] = {}
    for one in passes:
        if one.lm.at_hand:
            by_lm.setdefault(content_key(one.lm.identity()), {})[one.kind] = one
    paces: dict[str, float] = {}
    kinds = sum(map(len, by_lm.values()))
    if kinds:
        with progress("measure one batch of each LM pass", kinds, "batches") as advance:
            for group in by_lm.values():
                paces |= _paces(list(group.values()), clock, advance)
    return paces


@torch.no_grad()
def _paces(
    group: Sequence[Passes], clock: Callable[[], float], advance: Callable[[int], None]
) -> dict[str, float]:
    """Of passes of one LM, which is freed at the end."""
    lm = group[0].lm.load(group[0].device)
    found: dict[str, float] = {}
    for one in group:
        draws = torch.Generator().manual_seed(0)
        batch = torch.randint(lm.vocab_size, one.shape, generator=draws).to(lm.device)
        one.run(lm, batch[:1])  # the first one loads and compiles
        _wait(lm.device)
        start = clock()
        one.run(lm, batch)
        _wait(lm.device)
        found[one.kind] = (clock() - start) / batch.numel()
        advance(1)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
