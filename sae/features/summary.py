"""Summaries of latents: exact numbers from all firings, and a choice of contexts."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae.activations.cache import locate
from sae.features.firings import Firings
from sae.features.plain import WINDOW
from sae.features.record import DECILES, HISTOGRAM_BINS, INTERVALS, Summary
from sae.features.shown import Group, Listed, Shown

TOP, PER_INTERVAL, RANDOM, ZERO = 20, 5, 10, 10
"""Contexts kept in each group, of intervals in each of them."""
LISTED_TOKENS, STACKED_TOKENS = 10, 5
MIN_OCCURRENCES = 5
"""A token has a mean activation if it occurs so often in the text."""


class Place(NamedTuple):
    """Positions and tokens of the rows of a text.

    Args:
        tokens: The contexts.
        rows_per_context: Rows of a context; its first positions may have none.
        occurrences: Number of rows that count with each token id.
        seed: Seed of the contexts that are drawn.
    """

    tokens: Int[np.ndarray, "contexts ctx"]
    rows_per_context: int
    occurrences: Int[np.ndarray, " vocab"]
    seed: int


def summarise(latent: int, fired: Firings, place: Place) -> Summary:
    """Sum up the firings of one latent: exact numbers, and contexts to show.

    Args:
        latent: Number of the latent; with the seed it decides which contexts are drawn.
        fired: Firings of the latent; at least one.
        place: Positions and tokens of the text.
    """
    value = fired.value.astype(np.float64)
    context, position = locate(fired.row, place.tokens.shape[1], place.rows_per_context)
    token = place.tokens[context, position]
    largest = float(value.max())
    falling = np.sort(value)[::-1]
    mass_of = np.bincount(token, value)
    ids = np.flatnonzero(mass_of)
    mass = mass_of[ids]
    by_mass = _first(mass, LISTED_TOKENS)
    stacked = ids[by_mass[:STACKED_TOKENS]]
    column = np.full(len(mass_of), STACKED_TOKENS)
    column[stacked] = np.arange(len(stacked))
    cells = equal_width(value, largest, HISTOGRAM_BINS) * (STACKED_TOKENS + 1) + column[token]
    often = np.flatnonzero(place.occurrences[ids] >= MIN_OCCURRENCES)
    mean = mass[often] / place.occurrences[ids[often]]
    by_mean = _first(mean, LISTED_TOKENS)
    return Summary(
        firings=len(value),
        contexts_fired=int((np.diff(context) > 0).sum()) + 1,
        max=largest,
        mean=float(value.mean()),
        interval_counts=np.bincount(equal_width(value, largest, INTERVALS), minlength=INTERVALS),
        decile_edges=decile_edges(falling),
        histogram=np.bincount(
            cells, minlength=HISTOGRAM_BINS * (STACKED_TOKENS + 1)
        ).reshape(HISTOGRAM_BINS, -1),
        histogram_tokens=stacked,
        by_mass=Listed(ids[by_mass], mass[by_mass] / mass.sum()),
        by_mean=Listed(ids[often[by_mean]], mean[by_mean]),
        positions=np.bincount(position, minlength=place.tokens.shape[1]),
        contexts=_Choice(latent, context, position, value, falling, place).shown(),
    )  # fmt: skip


def equal_width(value: Float[np.ndarray, " n"], largest: float, bins: int) -> Int[np.ndarray, " n"]:
    """The bin of each value, of equally wide ones on [0, largest]; a border belongs to the upper.

    Example:
        >>> equal_width(np.array([0.1, 0.5, 1.0]), 1.0, 2)
        array([0, 1, 1])
    """
    return np.minimum((value / largest * bins).astype(np.int64), bins - 1)


def decile_edges(falling: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edges"]:
    """The largest value, then the smallest of each of ten equal parts of falling values.

    Example:
        >>> decile_edges(np.arange(20.0, 0.0, -1.0))
        array([20., 19., 17., 15., 13., 11.,  9.,  7.,  5.,  3.,  1.])
    """
    last = -(-np.arange(1, DECILES + 1) * len(falling) // DECILES) - 1
    return np.concatenate([falling[:1], falling[last]])


def decile(
    of: Float[np.ndarray, " n"], falling: Float[np.ndarray, " firings"]
) -> Int[np.ndarray, " n"]:
    """The decile of some activations among all of a latent: 1 holds the strongest tenth."""
    rank = np.searchsorted(-falling, -of, side="left")
    return rank * DECILES // len(falling) + 1


def decile_of(
    value: Float[np.ndarray, " n"], edges: Float[np.ndarray, "*n edges"]
) -> Int[np.ndarray, " n"]:
    """`decile` by the borders that `decile_edges` found; values beyond them are in 1 or 10.

    Example:
        >>> decile_of(np.array([30.0, 18.5, 0.5]), decile_edges(np.arange(20.0, 0.0, -1.0)))
        array([ 1,  2, 10])
    """
    return np.minimum((edges[..., 1:] > value[:, None]).sum(-1) + 1, DECILES)


class _Choice:
    """Chooses contexts; a context counts once, by its maximum."""

    def __init__(
        self,
        latent: int,
        context: Int[np.ndarray, " firings"],
        position: Int[np.ndarray, " firings"],
        value: Float[np.ndarray, " firings"],
        falling: Float[np.ndarray, " firings"],
        place: Place,
    ):
        self.place, self.position, self.value = place, position, value
        self.random = np.random.default_rng([place.seed, latent])
        starts = np.flatnonzero(np.diff(context, prepend=-1))
        self.context = context[starts]
        self.bounds = np.append(starts, len(context))
        self.peak_value = np.maximum.reduceat(value, starts)
        self.interval = equal_width(self.peak_value, float(falling[0]), INTERVALS) + 1
        self.decile = decile(self.peak_value, falling)

    def shown(self) -> list[Shown]:
        """The contexts of all groups."""
        top = self._top()
        groups: list[tuple[Group, int]] = [("top", i) for i in top]
        left = np.ones(len(self.context), dtype=bool)
        left[top] = False
        for interval in range(1, INTERVALS + 1):
            those = np.flatnonzero(left & (self.interval == interval))
            groups.extend(("interval", int(i)) for i in self._draw(those, PER_INTERVAL))
        found = [self._fired(group, i) for group, i in groups]
        contexts = len(self.place.tokens)
        for context in self._draw(np.arange(contexts), RANDOM):
            found.append(self._any("random", int(context)))
        silent = np.ones(contexts, dtype=bool)
        silent[self.context] = False
        return found + [
            self._any("zero", int(context)) for context in self._draw(np.flatnonzero(silent), ZERO)
        ]

    def _top(self) -> list[int]:
        """The contexts of largest maximum, of those with equal windows the first alone."""
        chosen: list[int] = []
        seen: set[bytes] = set()
        for i in np.lexsort((self.context, -self.peak_value)).tolist():
            peak = self._peak(i)
            window = self.place.tokens[self.context[i], max(0, peak - WINDOW) : peak + WINDOW + 1]
            if window.tobytes() not in seen:
                seen.add(window.tobytes())
                chosen.append(i)
            if len(chosen) == TOP:
                break
        return chosen

    def _draw(self, those: np.ndarray, count: int) -> np.ndarray:
        if len(those) <= count:
            return those
        return np.sort(self.random.choice(those, count, replace=False))

    def _peak(self, i: int) -> int:
        own = slice(self.bounds[i], self.bounds[i + 1])
        return int(self.position[own][self.value[own].argmax()])

    def _fired(self, group: Group, i: int) -> Shown:
        own = slice(self.bounds[i], self.bounds[i + 1])
        return Shown(
            group, int(self.context[i]), self._peak(i), float(self.peak_value[i]),
            int(self.interval[i]), int(self.decile[i]), self.position[own],
            self.value[own].astype(np.float32),
        )  # fmt: skip

    def _any(self, group: Group, context: int) -> Shown:
        i = int(np.searchsorted(self.context, context))
        if i < len(self.context) and self.context[i] == context:
            return self._fired(group, i)
        nothing = np.zeros(0)
        return Shown(group, context, -1, 0.0, 0, 0, nothing.astype(int), nothing.astype("f4"))


def _first(values: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " m"]:
    """Indices of the largest values, falling; of equal ones the first."""
    return np.argsort(-values, kind="stable")[:count]
