"""Rows of a split that count, and their statistics: one pass for each rule, then cached."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.counted import Counted, RowRule, limits_from_json
from sae.activations.rows import Rows, TokenRows, parts_of
from sae.activations.stats import RunningStats, Stats, joined_stats
from sae.cached import cached_json
from sae.errors import DegenerateInputError, StoreError
from sae.progress import progress
from sae.provenance import content_key

log = logging.getLogger(__name__)


@runtime_checkable
class Chunks(Protocol):
    """Rows that can be read chunk by chunk before their statistics are known."""

    def read(self, i: int) -> Tensor:
        """The rows of chunk `i`."""
        ...

    def tokens(self, i: int) -> Any:
        """The token of each row of chunk `i`; None where there are no tokens."""
        ...


class CountedPart(NamedTuple):
    """One point of the rows that count.

    Args:
        d_in: Width of the activations.
        stats: Statistics of the rows that count.
    """

    d_in: int
    stats: Stats


@dataclass(frozen=True)
class Counts:
    """Findings of a pass over a split.

    Attributes:
        sizes: Rows of each chunk that count.
        stats: Statistics of the rows that count, by point.
    """

    sizes: tuple[int, ...]
    stats: tuple[Stats, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"sizes": list(self.sizes), "stats": [one.to_json() for one in self.stats]}

    @classmethod
    def from_json(cls, content: Any) -> "Counts":
        """Undo `to_json`."""
        stats = tuple(Stats.from_json(one) for one in content["stats"])
        return cls(tuple(map(int, content["sizes"])), stats)


class CountedRows:
    """The rows that count: `Rows`. Chunks are those of all rows, less what is left out.

    Args:
        rows: All rows of the split, of one point or of several.
        counted: Rule for the rows that count.
        folder: Folder that keeps counts and statistics; None: they are not kept.
    """

    def __init__(self, rows: TokenRows, counted: Counted, folder: Path | None = None):
        self.all, self.counted, self._folder = rows, counted, folder
        self.d_in, self.num_chunks = rows.d_in, rows.num_chunks
        self.widths = tuple(part.d_in for part in parts_of(rows))
        self._last: tuple[int, Tensor] | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows that count."""
        return int(self._starts[-1])

    @cached_property
    def parts(self) -> tuple[CountedPart, ...]:
        """Width and statistics at each point."""
        return tuple(map(CountedPart, self.widths, self.counts.stats))

    @property
    def stats(self) -> Stats:
        """Statistics of the rows that count; of a large streamed split, of those in a sample."""
        return joined_stats([part.stats for part in self.parts])

    @cached_property
    def counts(self) -> Counts:
        """Measured at the first use by any run, then read from the cache."""
        identity = {"counted": self.counted.to_json(), "rows": self.all.num_rows}
        file = self._folder and self._folder / f"counted-{content_key(identity)}.json"
        counts = Counts.from_json(cached_json(file, lambda: self._measure().to_json()))
        if not sum(counts.sizes):
            raise DegenerateInputError(
                f"None of the {self.all.num_rows:,} rows counts under activations.special="
                f"{self.counted.rule.special} activations.max_norm={self.counted.rule.max_norm}. "
                "Choose another rule."
            )
        return counts

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk `i` and the row after its last, counting only rows that count."""
        if not 0 <= i < self.num_chunks:
            raise IndexError(f"chunk {i} of {self.num_chunks}")
        return int(self._starts[i]), int(self._starts[i + 1])

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """The rows of chunk `i` that count."""
        x = self.all.read(i)
        with torch.inference_mode(False):  # whoever reads, an evaluation too, gets plain tensors
            kept = x[self.mask(i, x)]
        start, stop = self.chunk_bounds(i)
        if len(kept) != stop - start:
            raise StoreError(
                f"Chunk {i} has {len(kept)} rows that count and had {stop - start} before: its "
                f"activations changed. Remove {self._folder} and run again."
            )
        return kept

    def mask(self, i: int, x: Float[Tensor, "rows d_in"]) -> Bool[Tensor, " rows"]:
        """Rows that count of chunk `i` of `all`, whose content is `x`."""
        tokens = self.all.tokens(i)
        ids = None if tokens is None else torch.as_tensor(tokens)
        mask = self.counted.mask(x.split(self.widths, dim=1), ids)
        self._last = (i, mask)
        return mask

    def documents(self, i: int) -> Int[np.ndarray, " rows"] | None:
        """The document of each row of chunk `i` that counts; None if nothing is known."""
        documents, last = self.all.documents(i), self._last
        if documents is None:
            return None
        mask = last[1] if last is not None and last[0] == i else self.mask(i, self.all.read(i))
        return documents[mask.numpy()]

    @cached_property
    def _starts(self) -> Int[np.ndarray, " starts"]:
        return np.concatenate([[0], np.cumsum(self.counts.sizes)])

    def _measure(self) -> Counts:
        return measure(self, range(self.num_chunks))


def measure(rows: CountedRows, chunks: Sequence[int]) -> Counts:
    """One pass over some chunks; `sizes` are those of these chunks."""
    running, sizes = [RunningStats(width) for width in rows.widths], []
    with progress("count rows", len(chunks), "chunks") as advance:
        for i in chunks:
            x = rows.all.read(i)
            x = x[rows.mask(i, x)]
            sizes.append(len(x))
            for stats, part in zip(running, x.split(rows.widths, dim=1), strict=True):
                stats.update(part)
            advance(1)
    return Counts(tuple(sizes), tuple(stats.result() for stats in running))


def median_norm(
    rows: Chunks, special_ids: Iterable[int], chunks: Sequence[int], folder: Path | None = None
) -> float:
    """Median norm of the rows of ordinary tokens, within 0.6 %.

    Args:
        rows: All rows of a split at one point.
        special_ids: Tokens that are left out.
        chunks: Indices of the chunks to read.
        folder: Folder that keeps the median; None: it is not kept.
    """
    ids = torch.tensor(sorted(special_ids), dtype=torch.long)

    def make() -> dict[str, float]:
        running = RunningStats(1)
        with progress("measure norms", len(chunks), "chunks") as advance:
            for i in chunks:
                norms = rows.read(i).float().norm(dim=1, keepdim=True)
                tokens = rows.tokens(i)
                if tokens is not None:
                    norms = norms[~torch.isin(torch.as_tensor(tokens).long(), ids)]
                running.update(norms)
                advance(1)
        return {"median": running.result().norm_quantiles.get("0.5", 0.0)}

    key = content_key({"special_ids": ids.tolist(), "chunks": len(chunks)})
    return float(cached_json(folder and folder / f"median-{key}.json", make)["median"])


def count_rows(rows: TokenRows, counted: Counted, folder: Path | None = None) -> Rows:
    """The rows that count: the rows themselves where it is known that all of them do."""
    parts = parts_of(rows)
    no_tokens = not counted.special_ids or not rows.num_chunks or rows.tokens(0) is None
    if no_tokens and all(
        not math.isfinite(limit) or part.stats.norm_quantiles.get("max", math.inf) <= limit
        for part, limit in zip(parts, counted.limits.values(), strict=True)
    ):
        return rows
    those = CountedRows(rows, counted, folder)
    _ = those.counts  # measured now, so that mistakes come before training
    return those


def counted_of(
    train: Rows, rule: RowRule, limits: Mapping[str, float | None] | None = None
) -> Counted:
    """The rule for activations that come from no known LM: without tokens, at one point.

    Args:
        train: The training rows, whose statistics have the median norm.
        rule: The settings.
        limits: The largest norm that counts where it is known, as `Counted.to_json` gives it.
    """
    if limits is not None:
        return Counted(rule, (), limits_from_json(limits))
    median = train.stats.norm_quantiles.get("0.5", 0.0) if rule.max_norm is not None else 0.0
    return Counted(rule, (), {"x": rule.limit(median)})


def all_rows(rows: Rows) -> Rows:
    """All rows of the split, those that are left out included."""
    return rows.all if isinstance(rows, CountedRows) else rows
