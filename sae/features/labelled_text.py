"""A text by rows with labels, and labels that changed places: what purity is counted on."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sae.features.firings import Firings

GROUPS = 32
"""Groups of documents, at most."""


class RowLabels(NamedTuple):
    """Labels of one kind.

    Args:
        of: Index in `names` of each row.
        names: Names of the labels.
        whole: True if all rows of a document have one label. Within a token, labels are then
            shuffled over the documents that have it, not over its rows: a latent that fires often
            in one document would tell its label by chance.
    """

    of: Int[np.ndarray, " rows"]
    names: tuple[str, ...]
    whole: bool = False


class Pairs(NamedTuple):
    """Pairs of a token and a label.

    Args:
        of: The pair of each row; -1 where the row does not count.
        rows: Rows that count of each pair: all, then by group; of shuffled labels all alone.
    """

    of: Int[np.ndarray, " rows"]
    rows: Int[np.ndarray, "pairs columns"]


class LabelledText:
    """A text by rows. What does not depend on the dictionary is counted once.

    Args:
        token: The token of each row.
        document: The document of each row.
        context: The context of each row.
        counted: True where the row counts.
        labels: Labels by kind.
        shuffles: Number of times that labels are shuffled within tokens.
        seed: Seed of the shuffles.
    """

    def __init__(
        self,
        token: Int[np.ndarray, " rows"],
        document: Int[np.ndarray, " rows"],
        context: Int[np.ndarray, " rows"],
        counted: Bool[np.ndarray, " rows"],
        labels: Mapping[str, RowLabels],
        *,
        shuffles: int = 5,
        seed: int = 0,
    ):
        self.counted, self.rows = counted, np.flatnonzero(counted)
        self.context, self.labels, self.seed = context, labels, seed
        self.token, self.tokens = _numbered(token, self.rows)
        self.group, groups = _numbered(document % GROUPS, self.rows)
        self.num_groups = len(groups)
        self.num_documents = len(np.unique(document[self.rows]))
        self.occurrences = self._by_group(self.token[self.rows])
        self.label_rows = {kind: self._by_group(one.of[self.rows], len(one.names))
                           for kind, one in labels.items()}  # fmt: skip
        self.pairs: dict[str, Pairs] = {}
        """Pairs of each kind of labels."""
        self.shuffled: dict[str, list[Pairs]] = {}
        """The same after the labels changed places, once for each shuffle."""
        for kind, one in labels.items():
            of = self._pairs(one.of[self.rows], len(one.names))
            self.pairs[kind] = Pairs(of, self._by_group(of[self.rows]))
            random = np.random.default_rng(seed)
            self.shuffled[kind] = []
            for _ in range(shuffles):
                of = self._pairs(self._moved(one, document, random), len(one.names))
                rows = np.bincount(of[self.rows])[:, None]
                self.shuffled[kind].append(Pairs(of, rows))
        by_group = self.occurrences.sum(0)
        self.rows_without = np.append(by_group[:1], by_group[0] - by_group[1:])
        """Rows that count: all, then without each group."""

    def lookup(self) -> Iterator[tuple[str, Firings]]:
        """The dictionary of tokens: a latent for each, which fires with 1 where the token is."""
        order = self.rows[np.argsort(self.token[self.rows], kind="stable")]
        ends = np.cumsum(self.occurrences[:, 0])
        for token, start, end in zip(self.tokens, [0, *ends[:-1]], ends, strict=True):
            yield str(token), Firings(order[start:end], np.ones(end - start, np.float32))

    def _moved(
        self, one: RowLabels, document: Int[np.ndarray, " rows"], random: np.random.Generator
    ) -> Int[np.ndarray, " counted"]:
        """Labels of the rows that count after they changed places within tokens."""
        token, block = self.token[self.rows].astype(np.int64), np.arange(len(self.rows))
        if one.whole:  # rows of one token and one document move together
            block = token * (int(document.max()) + 1) + document[self.rows]
        _, first, of = np.unique(block, return_index=True, return_inverse=True)
        token, label = token[first], one.of[self.rows][first]
        in_order, moved = np.argsort(token, kind="stable"), np.empty_like(label)
        moved[in_order] = label[np.lexsort((random.random(len(first)), token))]
        return moved[of]

    def _pairs(self, label: Int[np.ndarray, " counted"], size: int) -> Int[np.ndarray, " rows"]:
        key = np.zeros(len(self.token), np.int64)
        key[self.rows] = self.token[self.rows].astype(np.int64) * size + label
        return _numbered(key, self.rows)[0]

    def _by_group(
        self, of: Int[np.ndarray, " counted"], size: int = 0
    ) -> Int[np.ndarray, "kinds columns"]:
        size = max(size, int(of.max()) + 1)
        table = pair_counts(of, self.group[self.rows], size, self.num_groups)
        return np.concatenate([table.sum(1, keepdims=True), table], 1)


def pair_counts(
    of: Int[np.ndarray, " n"], by: Int[np.ndarray, " n"], size: int, width: int
) -> Int[np.ndarray, "size width"]:
    """Counts of each pair."""
    pairs = np.bincount(of.astype(np.int64) * width + by, minlength=size * width)
    return pairs.reshape(size, width)


def _numbered(
    ids: Int[np.ndarray, " rows"], rows: Int[np.ndarray, " counted"]
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " kinds"]]:
    """Ids of the rows that count, numbered from 0 without gaps (-1 elsewhere), and all ids."""
    found = np.full(len(ids), -1, np.int32)
    kinds, found[rows] = np.unique(ids[rows], return_inverse=True)
    return found, kinds
