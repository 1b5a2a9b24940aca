"""Purity of latents: of which tokens and labels their firings are, over their whole range.

All numbers of a latent come from counts of its firings. Each is computed again without one group of
documents after the other, which says how much that group moves it (`influence`): so means over
latents get intervals over documents (sae/metrics/matched.py).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae.features.firings import Firings
from sae.features.labelled_text import LabelledText, Pairs, pair_counts
from sae.features.record import DECILES
from sae.functional import entropy_of_sums, label_similarity, purity
from sae.kernels.tallies import Sums, sums_within, sums_without

MIN_CONTEXTS = 20
"""A latent that fires in fewer contexts is too rare."""
MIN_FOR_DECILES = 100
"""Firings from which on a latent has numbers of deciles."""
_BATCH_FIRINGS = 500_000
_NO_BITS = 1e-6
_DRAWS = 5


class Purities(NamedTuple):
    """Numbers of the latents of a dictionary that are not too rare.

    Args:
        latent: Names of the latents.
        firings: Rows on which each fires.
        values: Numbers of each by name; NaN where undefined.
        influence: Amount by which each group of documents moves a number: (G-1)(mean of the numbers
            without one group - the number without this one).
        deciles: Numbers of the deciles of each, the strongest first; NaN where it fires too seldom.
        label: Most frequent label of each kind.
        rare: Number of latents that fire, but in too few contexts.
    """

    latent: list[str]
    firings: Int[np.ndarray, " latents"]
    values: dict[str, Float[np.ndarray, " latents"]]
    influence: dict[str, Float[np.ndarray, "latents groups"]]
    deciles: dict[str, Float[np.ndarray, "latents deciles"]]
    label: dict[str, list[str]]
    rare: int


def purities(text: LabelledText, latents: Iterable[tuple[str, Firings]]) -> Purities:
    """The numbers of all latents that are not too rare.

    Args:
        text: The text.
        latents: Names and firings, by row; only rows that count.
    """
    parts: list[Purities] = []
    batch: list[tuple[str, Firings]] = []
    rare = held = 0
    for name, fired in latents:
        if len(np.unique(text.context[fired.row])) < MIN_CONTEXTS:
            rare += len(fired.row) > 0
            continue
        batch.append((name, fired))
        held += len(fired.row)
        if held > _BATCH_FIRINGS:
            parts.append(_Batch(text, batch).measured())
            batch, held = [], 0
    if batch:
        parts.append(_Batch(text, batch).measured())
    return _joined(parts, rare)


def chance(text: LabelledText) -> dict[str, float]:
    """The numbers of a latent that fires on every row."""
    everywhere = Firings(text.rows, np.ones(len(text.rows), np.float32))
    found = _Batch(text, [("", everywhere)]).measured()
    names = [f"{k}_{word}" for k in ("token", *text.labels) for word in ("entropy", "purity")]
    return {name: float(found.values[name][0]) for name in names}


class _Batch:
    """Puts together the numbers of some latents, whose firings are concatenated."""

    def __init__(self, text: LabelledText, latents: list[tuple[str, Firings]]):
        self.text, self.names = text, [name for name, _ in latents]
        self.row = np.concatenate([fired.row for _, fired in latents])
        value = np.concatenate([fired.value for _, fired in latents])
        self.firings = np.array([len(fired.row) for _, fired in latents])
        self.start = np.concatenate([[0], np.cumsum(self.firings)])
        self.of = np.repeat(np.arange(len(latents)), self.firings)
        self.group = text.group[self.row]
        self.decile = self._deciles(value)
        self.with_deciles = self.firings >= MIN_FOR_DECILES
        by_group = pair_counts(self.of, self.group, len(latents), text.num_groups)
        self.without = self.firings[:, None] - by_group
        self.in_decile = pair_counts(self.of, self.decile, len(latents), DECILES)
        self.values: dict[str, np.ndarray] = {}
        self.influence: dict[str, np.ndarray] = {}
        self.deciles: dict[str, np.ndarray] = {}
        self.label: dict[str, list[str]] = {}

    def measured(self) -> Purities:
        text = self.text
        by_token = self._kinds("token", text.token[self.row], text.occurrences)
        for kind, one in text.labels.items():
            label = one.of[self.row]
            self._kinds(kind, label, text.label_rows[kind])
            most = pair_counts(self.of, label, len(self.names), len(one.names)).argmax(1)
            self.label[kind] = [one.names[i] for i in most]
            self._given_token(kind, by_token.bits)
            self._consistency(kind, label, len(one.names))
        return Purities(
            self.names, self.firings, self.values, self.influence, self.deciles, self.label, 0
        )

    def _deciles(self, value: np.ndarray) -> np.ndarray:
        """The decile of each firing in its latent, 0 the strongest; of equal ones the stronger."""
        order = np.lexsort((-value, self.of))
        place = np.arange(len(value))
        falls = np.diff(value[order], prepend=np.nan) != 0
        falls[self.start[:-1]] = True
        rank = np.maximum.accumulate(np.where(falls, place, 0)) - self.start[self.of[order]]
        found = np.empty(len(value), np.int64)
        found[order] = rank * DECILES // self.firings[self.of[order]]
        return found

    def _add(self, name: str, numbers: np.ndarray) -> None:
        """A number of each latent, and the numbers without each group; those it needs stay."""
        whole, without = numbers[:, 0], numbers[:, 1:]
        self.values[name] = whole
        without = np.where(np.isnan(without), whole[:, None], without)
        mean = without.mean(1, keepdims=True)
        self.influence[name] = (self.text.num_groups - 1) * (mean - without)

    def _kinds(self, name: str, kind: np.ndarray, total: np.ndarray) -> Sums:
        """Entropy and purity of tokens or labels, over the range and in each decile."""
        sums = sums_without(kind, self.group, self.start, total)
        firings = np.column_stack([self.firings, self.without])
        self._add(f"{name}_entropy", entropy_of_sums(firings, sums.n_log_n))
        self._add(f"{name}_purity", purity(sums.largest, firings))
        within, largest = sums_within(kind, self.decile, self.start, len(total), DECILES)
        for word, found in (
            ("entropy", entropy_of_sums(self.in_decile, within)),
            ("purity", purity(largest, self.in_decile)),
        ):
            self.deciles[f"{name}_{word}"] = np.where(self.with_deciles[:, None], found, np.nan)
        return sums

    def _given_token(self, kind: str, by_token: np.ndarray) -> None:
        """Information of the label about firing beyond the token, less that of shuffled labels."""
        rows = self.text.rows_without

        def bits(pairs: Pairs) -> np.ndarray:
            return sums_without(pairs.of[self.row], self.group, self.start, pairs.rows).bits

        information = (by_token - bits(self.text.pairs[kind])) / rows
        uncertainty = by_token / rows
        shuffled = [bits(pairs)[:, 0] for pairs in self.text.shuffled[kind]]
        chance = (by_token[:, 0] - np.mean(shuffled, axis=0)) / rows[0]
        more = information - chance[:, None]
        share = np.divide(
            more, uncertainty, out=np.zeros_like(more), where=uncertainty > _NO_BITS / rows
        )
        self.values[f"{kind}_uncertainty"] = uncertainty[:, 0]
        self.values[f"{kind}_information"] = information[:, 0]
        self.values[f"{kind}_information_shuffled"] = chance
        self._add(f"{kind}_bits", more)
        self._add(f"{kind}_given_token", share)

    def _consistency(self, kind: str, label: np.ndarray, size: int) -> None:
        """Likeness of deciles 1-2 and 9-10, and of two random fifths of the firings."""
        latents, groups = len(self.names), self.text.num_groups
        ends = (self.decile < 2, self.decile >= DECILES - 2)

        def counts(label: np.ndarray, part: np.ndarray) -> np.ndarray:
            pair = self.of[part] * size + label[part]
            table = pair_counts(pair, self.group[part], latents * size, groups)
            return table.reshape(latents, size, groups).transpose(1, 0, 2)

        tables = [counts(label, part) for part in ends]
        whole = [table.sum(2, keepdims=True) for table in tables]
        every = [
            np.concatenate([total, total - table], 2)
            for total, table in zip(whole, tables, strict=True)
        ]
        found = label_similarity(*every)
        found[~self.with_deciles] = np.nan
        self._add(f"{kind}_consistency", found)
        random, drawn = np.random.default_rng(self.text.seed), []
        for _ in range(_DRAWS):
            place = random.random(len(label))
            sums = [counts(label, part).sum(2) for part in (place < 0.2, place >= 0.8)]
            drawn.append(label_similarity(*sums))
        defined = np.isfinite(found[:, 0])
        mean = np.where(defined, np.mean(drawn, axis=0), np.nan)
        self.values[f"{kind}_consistency_shuffled"] = mean


def _joined(parts: list[Purities], rare: int) -> Purities:
    if not parts:
        return Purities([], np.zeros(0, np.int64), {}, {}, {}, {}, rare)

    def arrays(field: str) -> dict[str, np.ndarray]:
        names = getattr(parts[0], field)
        return {n: np.concatenate([getattr(part, field)[n] for part in parts]) for n in names}

    return Purities(
        [name for part in parts for name in part.latent],
        np.concatenate([part.firings for part in parts]),
        arrays("values"), arrays("influence"), arrays("deciles"),
        {kind: [one for part in parts for one in part.label[kind]] for kind in parts[0].label},
        rare,
    )  # fmt: skip
