"""Rows of a split of activations, as readers see them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.stats import RunningStats, Stats, joined_stats
from sae.errors import StoreError
from sae.progress import progress

# About 5 MB of bfloat16 at d_in 576: small enough to shuffle well, large enough to read fast.
ROWS_PER_CHUNK = 4096


@runtime_checkable
class Rows(Protocol):
    """One split of activations, read by whole chunks."""

    @property
    def num_rows(self) -> int:
        """Number of vectors."""
        ...

    @property
    def d_in(self) -> int:
        """Their width."""
        ...

    @property
    def num_chunks(self) -> int:
        """Number of chunks; all but the last have the same number of rows."""
        ...

    @property
    def stats(self) -> Stats:
        """Statistics of all rows."""
        ...

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk `i` and the row after its last."""
        ...

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i` in the LM's own units and the dtype it was stored in."""
        ...

    def documents(self, i: int) -> Int[np.ndarray, " rows"] | None:
        """The document that each row of chunk `i` comes from; None if nothing is known."""
        ...


@runtime_checkable
class TokenRows(Rows, Protocol):
    """Rows that know their tokens, so that a rule can leave special ones out."""

    def tokens(self, i: int) -> Int[np.ndarray, " rows"] | None:
        """The token of each row of chunk `i`; None if there are none."""
        ...


class JoinedRows:
    """Several aligned `Rows` as one: row i concatenates row i of every part.

    Args:
        parts: Rows of the same tokens at several points, with the same chunks.

    Raises:
        StoreError: If the parts are not aligned.
    """

    def __init__(self, parts: Sequence[TokenRows]):
        self.parts = tuple(parts)
        first = self.parts[0]
        self.num_rows, self.num_chunks = first.num_rows, first.num_chunks
        self.d_in = sum(part.d_in for part in self.parts)
        for part in self.parts[1:]:
            last = self.num_chunks - 1
            if (part.num_rows, part.num_chunks, part.chunk_bounds(last)) != (
                self.num_rows, self.num_chunks, first.chunk_bounds(last),
            ):  # fmt: skip
                raise StoreError(
                    f"Rows of {self.num_rows:,} and {part.num_rows:,} vectors, or of other chunks, "
                    "cannot be read side by side. Harvest them into one store."
                )

    @property
    def stats(self) -> Stats:
        """Statistics of the joined vectors."""
        return joined_stats([part.stats for part in self.parts])

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk `i` and the row after its last."""
        return self.parts[0].chunk_bounds(i)

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i` of all parts, side by side."""
        return torch.cat([part.read(i) for part in self.parts], dim=1)

    def documents(self, i: int) -> Int[np.ndarray, " rows"] | None:
        """The document that each row of chunk `i` comes from; None if nothing is known."""
        return self.parts[0].documents(i)

    def tokens(self, i: int) -> Int[np.ndarray, " rows"] | None:
        """The token of each row of chunk `i`; None if there are none."""
        return self.parts[0].tokens(i)


class EvenRows(ABC):
    """Rows without documents and tokens, in chunks of `ROWS_PER_CHUNK`: `Rows`.

    Args:
        num_rows: Number of vectors.
        d_in: Their width.
        title: Title of the progress bar while they are measured.

    Attributes:
        known: Their statistics; None before the first use.
    """

    def __init__(self, num_rows: int, d_in: int, title: str):
        self.num_rows, self.d_in, self._title = num_rows, d_in, title
        self.known: Stats | None = None
        self.num_chunks = -(-num_rows // ROWS_PER_CHUNK)

    @abstractmethod
    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i`."""

    @abstractmethod
    def check(self, i: int, rows: Float[Tensor, "rows d_in"]) -> None:
        """Raise an error if chunk `i` holds values that cannot be used."""

    @abstractmethod
    def find_stats(self) -> Stats:
        """Statistics of all rows: measured, or taken from a cache."""

    @property
    def stats(self) -> Stats:
        """Statistics of all rows, measured at the first use."""
        if self.known is None:
            self.known = self.find_stats()
        return self.known

    def measure(self) -> Stats:
        """Read all rows once, and check them."""
        running = RunningStats(self.d_in)
        with progress(self._title, self.num_rows, "rows") as advance:
            for i in range(self.num_chunks):
                rows = self.read(i)
                self.check(i, rows)
                running.update(rows)
                advance(len(rows))
        return running.result()

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk `i` and the row after its last."""
        if not 0 <= i < self.num_chunks:
            raise IndexError(f"chunk {i} of {self.num_chunks}")
        return i * ROWS_PER_CHUNK, min((i + 1) * ROWS_PER_CHUNK, self.num_rows)

    def documents(self, i: int) -> Int[np.ndarray, " rows"] | None:  # noqa: B027
        """None: these rows do not know their documents."""

    def tokens(self, i: int) -> None:  # noqa: B027
        """None: these rows do not know their tokens."""


@runtime_checkable
class Part(Protocol):
    """One point of joined rows."""

    @property
    def d_in(self) -> int:
        """Width of its activations."""
        ...

    @property
    def stats(self) -> Stats:
        """Statistics of its activations."""
        ...


def parts_of(rows: Rows) -> tuple[Part, ...]:
    """The points of joined rows; other rows are their only part."""
    return getattr(rows, "parts", (rows,))
