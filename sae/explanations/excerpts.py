"""Texts by places, and excerpts around places: what is embedded."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, UInt

from sae.features.shown import Text
from sae.language.pieces import pieces

Size = Literal["whole", "near"]
SIZES: dict[Size, int] = {"whole": 16, "near": 3}
"""Tokens on each side of the middle of an excerpt."""
MARKED_FROM = 0.3
"""Share of the largest activation of an excerpt from which on a token is marked (as in delphi)."""
DUPLICATE_TOKENS = 13
"""Two texts that share so many tokens in a row are near duplicates (as GPT-3's filter)."""
_PRIME = np.uint64(1_000_003)


@dataclass(frozen=True)
class PlacedText:
    """A text by places.

    Args:
        text: Contexts, which positions count, the vocabulary.
        document: The document of each position.
        special: Ids of special tokens, which excerpts leave out.
        rows_per_context: Rows of a context in the store; its first positions may have none.
    """

    text: Text
    document: Int[np.ndarray, "contexts ctx"]
    special: frozenset[int]
    rows_per_context: int

    @property
    def ctx(self) -> int:
        """Tokens in a context."""
        return self.text.tokens.shape[1]

    @cached_property
    def tokens(self) -> Int[np.ndarray, " places"]:
        """The token of each place."""
        return self.text.tokens.ravel()

    @cached_property
    def counted(self) -> Bool[np.ndarray, " places"]:
        """Mask of the places whose rows count."""
        return self.text.counted.ravel()

    @cached_property
    def vocabulary(self) -> list[bytes]:
        """Bytes of each token; none of special ones."""
        return [b"" if i in self.special else one for i, one in enumerate(self.text.vocabulary)]

    def place(self, row: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
        """The places of rows of the store."""
        context, position = np.divmod(row, self.rows_per_context)
        return context * self.ctx + position + self.ctx - self.rows_per_context

    def bounds(
        self, middle: Int[np.ndarray, " n"], side: int
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """First place and end of the excerpts around places; they stay within their contexts."""
        start = middle // self.ctx * self.ctx
        return np.maximum(start, middle - side), np.minimum(start + self.ctx, middle + side + 1)

    def excerpts(self, middle: Int[np.ndarray, " n"], side: int) -> list[str]:
        """The texts around places."""
        bounds = zip(*self.bounds(middle, side), strict=True)
        return [
            "".join(pieces(self.tokens[start:stop].tolist(), self.vocabulary)).strip()
            for start, stop in bounds
        ]

    def marked_excerpt(self, middle: int, side: int, on: Bool[np.ndarray, " places"]) -> str:
        """The text around a place, marked places between << and >>."""
        (start,), (stop,) = self.bounds(np.array([middle]), side)
        found, inside = "", False
        words = pieces(self.tokens[start:stop].tolist(), self.vocabulary)
        for word, mark in zip(words, on[start:stop].tolist(), strict=True):
            if mark != inside:
                found += "<<" if mark else ">>"
            found, inside = found + word, mark
        return (found + ">>" * inside).strip()

    def any_within(
        self, marked: Bool[np.ndarray, " places"], middle: Int[np.ndarray, " n"], side: int
    ) -> Bool[np.ndarray, " n"]:
        """True where a marked place lies in the excerpt around a place."""
        sums = np.concatenate([[0], np.cumsum(marked)])
        start, stop = self.bounds(middle, side)
        return sums[stop] > sums[start]


def repeated(of: PlacedText, other: PlacedText) -> Bool[np.ndarray, " places"]:
    """Places whose whole excerpt shares `DUPLICATE_TOKENS` tokens in a row with another text."""
    known = _sequences(other.text.tokens)
    marked = np.zeros(of.text.tokens.shape, bool)
    own = _sequences(of.text.tokens)
    marked[:, : own.shape[1]] = np.isin(own, known)
    sums = np.concatenate([[0], np.cumsum(marked.ravel())])
    start, stop = of.bounds(np.arange(marked.size), SIZES["whole"])
    last = np.maximum(start, stop - DUPLICATE_TOKENS + 1)  # a run that starts there ends inside
    return sums[last] > sums[start]


def _sequences(tokens: Int[np.ndarray, "contexts ctx"]) -> UInt[np.ndarray, "contexts starts"]:
    """A 64-bit hash of the tokens in a row from each position, within contexts."""
    starts = max(0, tokens.shape[1] - DUPLICATE_TOKENS + 1)
    found = np.zeros((len(tokens), starts), np.uint64)
    with np.errstate(over="ignore"):
        for i in range(DUPLICATE_TOKENS if starts else 0):
            found = found * _PRIME + tokens[:, i : i + starts].astype(np.uint64) + np.uint64(1)
    return found


def marked(of: PlacedText, places: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " places"]:
    """A mask of places."""
    found = np.zeros(len(of.tokens), bool)
    found[places] = True
    return found


def draw(
    of: Sequence[int] | Int[np.ndarray, " n"], count: int, seed: int | list[int]
) -> Int[np.ndarray, " m"]:
    """Some of these, drawn without replacement, or all if there are no more; ascending."""
    found = np.asarray(of)
    if len(found) <= count:
        return np.sort(found)
    return np.sort(np.random.default_rng(seed).choice(found, count, replace=False))
