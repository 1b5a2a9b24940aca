"""Tokens per second of the harvest, beside what bfloat16 products of the same shapes allow.

    python -m benchmarks.harvest                      the main job's LM, text and layer
    python -m benchmarks.harvest layer=8 site=mlp     overrides of train.py

The LM and the text come from the configured cache; what is harvested goes to a temporary one.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import (
    Result,
    Table,
    arguments,
    drawn,
    has_bf16,
    interleaved,
    ratios,
    spread,
)
from benchmarks.runs import configuration, temporary_cache
from sae.activations.cache import StoreSpec
from sae.activations.from_config import lm_activations, points_of
from sae.activations.harvest import harvest, rows_of
from sae.activations.sources import LoadedOnce
from sae.activations.store import ActivationStore
from sae.language.corpus import Corpus
from sae.language.lm import LanguageModel
from sae.reports.style import GREY, TONES, axes_of
from sae.training.from_config import resolve_device
from sae.types import SITES, Point


@dataclass(frozen=True)
class InMemory:
    """Another corpus, read once: the text is not what is measured."""

    corpus: Corpus
    texts: list[str]

    @property
    def name(self) -> str:
        """For people."""
        return self.corpus.name

    @property
    def streaming(self) -> bool:
        """Whether documents keep their order."""
        return self.corpus.streaming

    def identity(self) -> dict[str, object]:
        """Identity of the documents."""
        return self.corpus.identity()

    def to_config(self) -> dict[str, object]:
        """Its config."""
        return self.corpus.to_config()

    def documents(self) -> Iterator[str]:
        """The documents."""
        return iter(self.texts)


class LinearProducts:
    """Every product of activations and weights that an LM does up to some points, and no more.

    Args:
        lm: Its linear layers are listed by one forward pass.
        tokens: A batch of contexts.
        points: Where the pass ends.
        dtype: What is multiplied.
    """

    def __init__(
        self, lm: LanguageModel, tokens: Tensor, points: Sequence[Point], dtype: torch.dtype
    ) -> None:
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        inputs: dict[tuple[int, int], Tensor] = {}

        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            # of GPT-2's own Conv1D the weight lies the other way round
            W: Any = module.weight.T if isinstance(module, nn.Linear) else module.weight
            rows = args[0].numel() // args[0].shape[-1]
            shape = rows, args[0].shape[-1]
            x = inputs.setdefault(shape, torch.randn(shape).to(lm.device, dtype))
            W = W.to(dtype)
            seen.append((x, W, x.new_empty(rows, W.shape[1])))

        layers = [m for m in lm.model.modules() if isinstance(getattr(m, "weight", None), Tensor)]
        handles = [
            module.register_forward_pre_hook(note)
            for module in layers
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        ]
        lm.capture(tokens, points)
        for handle in handles:
            handle.remove()
        self.products = seen
        self.flops = sum(2 * x.shape[0] * W.shape[0] * W.shape[1] for x, W, _ in seen)

    @torch.no_grad()
    def __call__(self) -> None:
        """Multiply."""
        for x, W, out in self.products:
            torch.mm(x, W, out=out)


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; returns the page that was written."""
    parser = arguments(__doc__)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--tokens", type=int, help="LM tokens of a timed harvest")
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (2 if given.quick else 8)
    given.tokens = given.tokens or (512 if given.quick else 32_768)
    result = Result(given.name or "harvest", {k: v for k, v in vars(given).items() if k != "out"})

    with temporary_cache(given.quick):
        config = configuration(given.overrides, given.quick)
        activations = config["activations"]
        device = resolve_device(config["trainer"]["accelerator"])
        points = points_of(activations)
        source = lm_activations(config["lm"], config["corpus"], points[0], activations, device)
        loaded = LoadedOnce(source.source)
        lm: Any = loaded.load(device)
        loaded.load_tokenizer()  # and keeps it
        corpus = InMemory(source.corpus, list(source.corpus.documents()))
    spec = replace(source.specs["train"], tokens=given.tokens)
    with temporary_cache():
        bench = Bench(lm, loaded, corpus, spec, activations["batch_contexts"], device)
        seconds = bench.against_products(points, given.rounds)
        passes = bench.many_points(points, given.rounds)
    table = Table("One pass", ["what", "tokens/s", "of the product limit"])
    for name, taken in seconds.items():
        rate = spread([given.tokens / s for s in taken])
        table.rows.append([name, rate, ratios(seconds["product limit"], taken)])
    result.tables.append(table)
    table = Table("Many points in one pass", ["points", "tokens/s", "÷ time of 1 point"])
    for name, taken in passes.items():
        rate = spread([given.tokens / s for s in taken])
        table.rows.append([name, rate, ratios(taken, passes["1 point"])])
    result.tables.append(table)
    result.raw |= {"limit": {"seconds": seconds}, "points": {"seconds": passes}}
    result.notes.append(
        "Product limit: the rate (operations/s) of the LM's own linear layers up to the point, "
        "multiplied one after the other in the hardware's fastest format, times the operations of "
        "the forward pass by torch.utils.flop_counter (attention included). A harvest is LM, "
        "checks and disk; its text was cut into contexts before."
    )
    given.out.mkdir(parents=True, exist_ok=True)
    return result.write(given.out, drawn(_plot, seconds | passes, given.tokens))


@dataclass(frozen=True)
class Bench:
    """A point and the LM that it is harvested of.

    Attributes:
        lm: The LM that `loaded` gives.
        loaded: Its source.
        corpus: The text.
        spec: The store.
        batch_contexts: Contexts in a forward pass.
        device: Where the LM runs.
    """

    lm: LanguageModel
    loaded: LoadedOnce
    corpus: InMemory
    spec: StoreSpec
    batch_contexts: int
    device: str

    def harvest(self, points: Sequence[Point]) -> ActivationStore:
        """Into the cache folder of the moment."""
        return harvest(
            self.spec,
            points,
            source=self.loaded,
            corpus=self.corpus,
            batch_contexts=self.batch_contexts,
            device=self.device,
        )

    def against_products(self, points: Sequence[Point], rounds: int) -> dict[str, list[float]]:
        """Seconds for all tokens: the limit, forward passes, rows, the whole harvest."""
        tokens = self.harvest([]).tokens
        batch = torch.from_numpy(tokens[: self.batch_contexts]).to(self.device).long()
        dtype = torch.bfloat16 if has_bf16(self.device) else torch.float32
        products = LinearProducts(self.lm, batch, points, dtype)
        with FlopCounterMode(display=False) as counter:
            self.lm.capture(batch, points)
        flops = counter.get_total_flops() * tokens.size / batch.numel()

        def capture() -> None:
            for part in torch.from_numpy(tokens).split(self.batch_contexts):
                self.lm.capture(part.to(self.device).long(), points)

        def rows() -> None:
            rows_of(
                tokens, points, self.lm, self.spec, batch_contexts=self.batch_contexts,
                device=self.device,
            )  # fmt: skip

        turns = {
            "product limit": products,
            "forward passes": capture,
            "and rows as stored": rows,
            "whole harvest": partial(self.harvest, points),
        }
        seconds = self._timed(turns, rounds)
        limit = [s / products.flops * flops for s in seconds["product limit"]]
        return seconds | {"product limit": limit}

    def many_points(self, points: Sequence[Point], rounds: int) -> dict[str, list[float]]:
        """Seconds for the highest point alone, with those below it, and with all sites."""
        highest = max(points, key=lambda point: point.layer)
        layers = range(highest.layer + 1)
        below = [Point(highest.site, layer) for layer in layers]
        everything = [Point(site, layer) for layer in layers for site in SITES]
        turns = {
            "1 point": partial(self.harvest, [highest]),
            f"{len(below)} points: {highest.site} of every layer to it": partial(
                self.harvest, below
            ),
            f"{len(everything)} points: every site of these": partial(self.harvest, everything),
        }
        return self._timed(turns, rounds)

    def _timed(
        self, turns: Mapping[str, Callable[[], object]], rounds: int
    ) -> dict[str, list[float]]:
        def empty() -> None:
            shutil.rmtree(self.spec.folder)
            self.harvest([])

        return interleaved(turns, rounds, warmup=1, device=self.device, after=empty)


def _plot(seconds: Mapping[str, list[float]], tokens: int) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = axes_of(figure)[0, 0]
    axes.barh(
        list(seconds),
        [spread([tokens / s for s in taken]).median for taken in seconds.values()],
        color=[GREY if "limit" in name else TONES[0] for name in seconds],
    )
    axes.invert_yaxis()
    axes.set_xlabel("tokens/s")
    return figure


if __name__ == "__main__":
    main()
