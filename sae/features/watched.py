"""Latents that are shown at each validation while an SAE trains."""

from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sae.activations.counted_rows import CountedRows, all_rows
from sae.activations.rows import Rows
from sae.activations.sources import LMActivations
from sae.activations.stream import ReplacedRows
from sae.features.firings import Firings
from sae.features.make import contexts_in, place_of, text_of
from sae.features.record import Record
from sae.features.shown import Text
from sae.features.summary import Place, summarise
from sae.types import Split

NUM_TOKENS = 32_768
"""Tokens that are read at most, the first ones of the split."""
_SPLIT: Split = "val"


class WatchedText:
    """The text behind the first validation rows; it is read at its first use.

    Args:
        source: An LM's activations.
        rows: The validation rows that count.
    """

    def __init__(self, source: LMActivations, rows: Rows):
        self.rows, self._source = rows, source

    def contains(self, chunk: int) -> bool:
        """Say whether a chunk lies within the rows that are read."""
        return all_rows(self.rows).chunk_bounds(chunk)[1] <= self._num_rows

    def look(
        self,
        latent: int,
        row: Int[np.ndarray, " firings"],
        value: Float[np.ndarray, " firings"],
        contexts: int,
    ) -> dict[str, Any]:
        """Firings of a latent, as `Record.as_plain` gives them; nothing of its weights.

        Args:
            latent: Number of the latent.
            row: Rows on which it fires, ascending, as the validation gives them.
            value: Its activations there.
            contexts: Number of contexts to keep.
        """
        counted, stored = self._masks[0], self._stored[row]
        stored, value = stored[counted[stored]], value[counted[stored]]
        if not len(stored):
            nothing = ("tokens", "top_logits", "bottom_logits", "histogram", "contexts")
            return {"latent": str(latent), "density": 0.0, "max": 0.0} | {n: [] for n in nothing}
        summary = summarise(latent, Firings(stored, value), self._place)
        density = summary.firings / int(counted.sum())
        return Record(
            latent=latent, sign=1, density=density, text=self.text, **vars(summary)
        ).as_plain(contexts)  # fmt: skip

    @property
    def _num_rows(self) -> int:
        store = self._source.store(_SPLIT)
        return contexts_in(store, NUM_TOKENS) * store.spec.rows_per_context

    @cached_property
    def _masks(self) -> tuple[np.ndarray, np.ndarray]:
        """Masks of the rows that count, and of those that are given, in the chunks that are read.

        A large streamed split gives a replacement for each massive row, which does not count.
        """
        counted, given, every = [], [], all_rows(self.rows)
        for chunk in filter(self.contains, range(every.num_chunks)):
            start, stop = every.chunk_bounds(chunk)
            counts = np.ones(stop - start, dtype=bool)
            if isinstance(self.rows, CountedRows):
                counts = self.rows.mask(chunk, every.read(chunk)).numpy()
            counted.append(counts)
            if isinstance(self.rows, ReplacedRows):
                counts = self.rows.given(chunk).numpy()
            given.append(counts)
        return np.concatenate(counted), np.concatenate(given)

    @cached_property
    def _stored(self) -> Int[np.ndarray, " rows"]:
        """The row of the store of each row that is given."""
        return np.flatnonzero(self._masks[1])

    @cached_property
    def text(self) -> Text:
        """The text."""
        per_context = self._source.store(_SPLIT).spec.rows_per_context
        known = self._masks[0]
        contexts = -(-len(known) // per_context)
        counted = np.zeros(contexts * per_context, dtype=bool)
        counted[: len(known)] = known
        return text_of(self._source, _SPLIT, counted, contexts)

    @cached_property
    def _place(self) -> Place:
        """The text by rows: one for all latents and looks."""
        return place_of(self.text, self._source.store(_SPLIT), seed=0)


def by_hash(latents: Iterable[int]) -> list[int]:
    """Latents in the order of the hashes of their numbers: nobody chose the first ones by eye.

    Example:
        >>> by_hash(range(5))
        [4, 3, 0, 1, 2]
    """
    return sorted(latents, key=lambda i: sha256(str(i).encode()).digest())
