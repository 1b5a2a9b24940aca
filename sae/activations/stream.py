"""Activations without a cache: the LM runs again whenever rows are read; only tokens are on disk.

A chunk is computed from the contexts that it would hold in a cache, in the same batches, so a
streamed run sees the rows of a cached one in the same order. What differs is written at `SMALL` and
`ReplacedRows`.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.cache import (
    StoreSpec,
    store_lock,
)
from sae.activations.counted_rows import CountedRows, Counts, measure, median_norm
from sae.activations.harvest import LoadsLM, harvest, rows_of
from sae.activations.rows import JoinedRows, Rows, parts_of
from sae.activations.sources import LMActivations, LoadedOnce
from sae.activations.stats import RunningStats, Stats
from sae.activations.store import ActivationStore
from sae.cached import cached_json
from sae.errors import StoreError
from sae.language.corpus import Corpus
from sae.language.lm import LanguageModel
from sae.progress import progress
from sae.provenance import content_key
from sae.sharing import sharing
from sae.types import SPLITS, Ends, Point, Split

log = logging.getLogger(__name__)

SMALL = 131_072
"""Rows. A split of no more is computed once and kept in memory. A larger one is computed at every
read, and its statistics (mean, scale, median norm) come from about so many rows, in random chunks
of it."""


class StreamedRows:
    """The activations of one point, computed when they are read: `Rows`.

    Args:
        store: Tokens and documents of the split.
        point: Point where activations are read.
        passes: Runs the LM; several points of one text share it.
    """

    def __init__(self, store: ActivationStore, point: Point, passes: "LMPasses"):
        self.store, self.point, self.passes = store, point, passes
        self.d_in = passes.lm.width(point)
        self._layout = store.layout(self.d_in)
        self.num_rows, self.num_chunks = self._layout.num_rows, self._layout.num_chunks
        self.num_bytes = self.num_chunks * self._layout.chunk_bytes
        self._kept: dict[int, Tensor] = {}

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk `i` and the row after its last."""
        return self._layout.bounds(i)

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i` in the LM's own units and the dtype that a cache would have."""
        self._layout.bounds(i)  # refuses a chunk that is not there
        if i in self._kept:
            return self._kept[i]
        rows = self.passes.chunk(i)[self.point]
        if self.num_rows <= SMALL:
            self._kept[i] = rows
        return rows

    def documents(self, i: int) -> Int[np.ndarray, " rows"]:
        """The document that each row of chunk `i` comes from."""
        return self.store.documents_of(i)

    def tokens(self, i: int) -> Int[np.ndarray, " rows"]:
        """The token of each row of chunk `i`."""
        return self.store.tokens_of(i)

    @property
    def stats(self) -> Stats:
        """Statistics of all rows if they are `SMALL`, else of a sample, kept with the tokens."""
        return self._stats

    @cached_property
    def _stats(self) -> Stats:
        if self.num_rows <= SMALL:
            return self._measure()
        folder = self.store.folder
        file = folder / "samples" / f"{self.point}.json"
        with nullcontext() if file.exists() else store_lock(folder):  # measured by one process
            found = cached_json(file, lambda: {"stats": self._measure().to_json()})
        return Stats.from_json(found["stats"])

    def _measure(self) -> Stats:
        running, spec = RunningStats(self.d_in), self.store.spec
        chunks = measured_chunks(spec)
        title = f"measure {self.point} ({spec.split})"
        with progress(title, _measured_rows(spec), "vectors") as advance:
            for i in chunks:
                rows = self.read(i)
                running.update(rows)
                advance(len(rows))
        return running.result()


class ReplacedRows(CountedRows):
    """The rows of a large streamed split that count.

    How many rows have massive activations is known only once the LM has run, and the number of
    steps must be known before. So rows of special tokens are left out exactly, and a massive row is
    replaced by the row before it in its chunk that counts (at the start: by the first that does).
    `mask` tells them apart, so metrics are exact.
    """

    all: StreamedRows | JoinedRows

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i` without special tokens, massive rows replaced."""
        x = self.all.read(i)
        counts, ordinary = self.mask(i, x), self.given(i)
        with torch.inference_mode(False):  # whoever reads, an evaluation too, gets plain tensors
            if not counts.any():
                return x[ordinary]
            index = torch.arange(len(x)).masked_fill(~counts, -1).cummax(0).values
            return x[index.masked_fill(index < 0, int(counts.nonzero()[0]))[ordinary]]

    def documents(self, i: int) -> Int[np.ndarray, " rows"]:
        """The document of each row that `read` gives."""
        documents = self.all.documents(i)
        assert documents is not None
        return documents[self.given(i).numpy()]

    def given(self, i: int) -> Bool[Tensor, " rows"]:
        """Rows of chunk `i` of `all` that `read` gives, massive ones replaced."""
        return self.counted.ordinary(torch.as_tensor(self.all.tokens(i)))

    def _measure(self) -> Counts:
        streamed = parts_of(self.all)[0]
        assert isinstance(streamed, StreamedRows)
        sizes = tuple(int(self.given(i).sum()) for i in range(self.num_chunks))
        return Counts(sizes, measure(self, measured_chunks(streamed.store.spec)).stats)


class LMPasses:
    """Runs the LM over the contexts of a chunk, for all points at once; the last chunk is kept.

    Args:
        store: Tokens of the split.
        points: Points where activations are read.
        lm: The LM, on `device`.
        batch_contexts: Contexts handed to the LM at once.
        device: Device of the LM.
    """

    def __init__(
        self,
        store: ActivationStore,
        points: Sequence[Point],
        lm: LanguageModel,
        *,
        batch_contexts: int,
        device: str,
    ):
        self.store, self.points, self.lm = store, list(points), lm
        self.batch_contexts, self.device = batch_contexts, device
        self._last: tuple[int, dict[Point, Tensor]] | None = None

    def chunk(self, i: int) -> dict[Point, Float[Tensor, "rows d_in"]]:
        """The rows of chunk `i`, by point."""
        last = self._last  # read once: another thread may read another chunk
        if last is not None and last[0] == i:
            return last[1]
        # Whoever reads, a thread or a step of training, gets the bits of a harvest.
        device = torch.device(self.device).type
        with torch.inference_mode(False), torch.autocast(device, enabled=False):
            rows = rows_of(
                self.store.tokens[self.store.contexts_of(i)], self.points, self.lm,
                self.store.spec, batch_contexts=self.batch_contexts, device=self.device,
            )  # fmt: skip
        if len(self.points) > 1:
            self._last = (i, rows)
        return rows


class StreamedActivations(LMActivations):
    """`LMActivations` that stores only tokens; it takes the same arguments.

    The LM stays loaded, and `load_lm` gives that one.
    """

    def __init__(self, source: LoadsLM, corpus: Corpus, where: Point | Ends, **settings: Any):
        super().__init__(source, corpus, where, **settings)
        self._shared = LoadedOnce(source)
        self._rows: dict[tuple[Split, Ends], StreamedRows | JoinedRows] = {}
        self._counted_rows: dict[Split, Rows] = {}

    def prepare(self, also: Sequence[Point] = (), splits: Sequence[str] = SPLITS) -> None:
        """Tokenise, load the LM and measure the scale, so that mistakes come before training.

        Args:
            also: Further points that the LM must have; nothing is computed for them.
            splits: Splits to prepare; the text may be too short for the others.
        """
        lm = self.load_lm(self.device)
        for point in (*self.ends.points, *also):
            lm.check(point)
        for name, spec in self.specs.items():
            if name in splits:
                harvest(spec, [], source=self._shared, corpus=self.corpus, device=self.device)
        if "train" in splits:
            rows = self._streamed("train")
            parts: Any = rows.parts if isinstance(rows, JoinedRows) else (rows,)
            log.info(
                "Streaming %s: the LM runs while training reads, instead of a cache of %.2f GB.",
                self.ends, sum(part.num_bytes for part in parts) / 1e9,
            )  # fmt: skip
            _ = [part.stats for part in parts_of(self.split("train"))]

    def load_lm(self, device: str) -> LanguageModel:
        """The one LM of this source on that device."""
        return self._shared.load(device)

    def split(self, name: Split) -> Rows:
        """The rows of one split that count, the same object at every call.

        Raises:
            StoreError: If `prepare` was not called.
        """
        if name not in self._counted_rows:
            rows, spec = self._streamed(name), self.specs[name]
            if not self.rule.every_row:
                kind = CountedRows if spec.num_rows <= SMALL else ReplacedRows
                rows = kind(rows, self.counted, self._kept_in(name))
            self._counted_rows[name] = rows
        return self._counted_rows[name]

    def _median(self, point: Point, ids: tuple[int, ...]) -> float:
        streamed: Any = self._streamed(self.median_of)
        parts = streamed.parts if isinstance(streamed, JoinedRows) else (streamed,)
        rows: Any = parts[self.ends.points.index(point)]
        chunks = measured_chunks(self.specs[self.median_of])
        return median_norm(rows, ids, chunks, self._kept_in(self.median_of, point))

    def _kept_in(self, name: Split, point: Point | None = None) -> Path:
        return self.store(name).folder / "samples" / str(point or self.ends.points[0])

    def describe(self) -> dict[str, object]:
        """Provenance. The key is that of cached activations where the scale is theirs too."""
        described, train = super().describe(), self.specs["train"]
        described |= {"stream": True, "measured_rows": _measured_rows(train)}
        if train.num_rows > SMALL:
            of = {"rows": described["key"], "measured_chunks": measured_chunks(train)}
            described["key"] = content_key(of)
        return described

    def _streamed(self, name: Split) -> StreamedRows | JoinedRows:
        key = (name, self.ends)
        if key not in self._rows:
            if not (self.specs[name].folder / "metadata.json").exists():
                raise StoreError(
                    f"The {name} text is not tokenised yet. "
                    "Call prepare() (of the data module: prepare_data()) first."
                )
            spec = self.specs[name].key
            self._rows[key] = sharing().once(
                ("rows", spec, self.ends, self.batch_contexts, self.device),
                lambda: self._made(name),
            )
        return self._rows[key]

    def _made(self, name: Split) -> StreamedRows | JoinedRows:
        store, points = self.store(name), self.ends.points
        passes = LMPasses(
            store, points, self.load_lm(self.device),
            batch_contexts=self.batch_contexts, device=self.device,
        )  # fmt: skip
        parts = [StreamedRows(store, point, passes) for point in points]
        return JoinedRows(parts) if len(parts) > 1 else parts[0]


def measured_chunks(spec: StoreSpec) -> list[int]:
    """Chunks whose rows give the statistics of a split: all of a small one, else random ones."""
    if spec.num_rows <= SMALL:
        return list(range(-(-spec.num_rows // spec.chunk_rows)))
    whole, wanted = spec.num_rows // spec.chunk_rows, max(1, SMALL // spec.chunk_rows)
    return sorted(np.random.default_rng(spec.seed).permutation(whole)[:wanted].tolist())


def _measured_rows(spec: StoreSpec) -> int:
    return min(len(measured_chunks(spec)) * spec.chunk_rows, spec.num_rows)
