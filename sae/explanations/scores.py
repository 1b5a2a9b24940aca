"""Scores of explanations by a sentence encoder, each beside what chance reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.explanations.embeddings import Embeddings
from sae.explanations.excerpts import SIZES, PlacedText, Size, draw, marked
from sae.explanations.latents import Latent
from sae.features.firings import Firings
from sae.features.record import DECILES

PER_DECILE = 4
"""Excerpts from each decile of a latent's activations; the intruder stands beside these."""
INTRUDERS = 10
"""Intruders that are tried in each decile."""
CHANCE = 1 / (PER_DECILE + 1)
LEAST = 20
"""Excerpts without the latent that a score needs, and contexts with it."""
LEAST_POSITIVES = 5


class Bench:
    """The test text, and the pool of excerpts that all latents share.

    Args:
        text: The test text.
        allowed: Places that may be the middle of an excerpt.
        embeddings: Embeddings of excerpts and explanations.
        pool: Excerpts that are drawn.
        seed: Decides them.
    """

    def __init__(
        self, text: PlacedText, allowed: Bool[np.ndarray, " places"], embeddings: Embeddings,
        pool: int, seed: int = 0,
    ):  # fmt: skip
        self.text, self.allowed, self.embeddings, self.seed = text, allowed, embeddings, seed
        self.pool = draw(np.flatnonzero(allowed), pool, seed)
        self._in_pool = marked(text, self.pool)

    @cached_property
    def pooled(self) -> dict[Size, Float[np.ndarray, "pool d"]]:
        """Vectors of the pool's excerpts."""
        return {size: self.embed(self.pool, size) for size in SIZES}

    def embed(self, middle: Int[np.ndarray, " n"], size: Size) -> Float[np.ndarray, "n d"]:
        """Vectors of the excerpts around places."""
        return self.embeddings.of(self.text.excerpts(middle, SIZES[size]))

    def contexts(self, fired: Firings) -> int:
        """Contexts in which a latent fires at an allowed place."""
        return len(np.unique(fired.row[self.allowed[fired.row]] // self.text.ctx))

    def drawn(self, fired: Firings, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Places where a latent fires, `PER_DECILE` of each decile in different contexts.

        Equal activations are put in order at random. Places of the pool come first: they are a
        random choice as well, and embedded already.

        Returns:
            The places, and the decile of each, 0 the strongest.
        """
        random = np.random.default_rng([self.seed, seed])
        order = random.permutation(len(fired.row))
        order = order[np.argsort(-fired.value[order], kind="stable")]
        places, deciles = [], []
        for decile, part in enumerate(np.array_split(fired.row[order], DECILES)):
            part = random.permutation(part[self.allowed[part]])
            part = part[np.argsort(~self._in_pool[part], kind="stable")]
            _, first = np.unique(part // self.text.ctx, return_index=True)
            some = part[np.sort(first)[:PER_DECILE]]
            places.append(some)
            deciles.append(np.full(len(some), decile))
        return np.concatenate(places), np.concatenate(deciles)


@dataclass(frozen=True, eq=False)
class Excerpted:
    """A latent's excerpts of one size.

    Attributes:
        places: Firings in the middle of its excerpts.
        vectors: Vectors of these excerpts.
        decile: The decile of each.
        silent: Excerpts of the pool in which it does not fire.
        hard: Excerpts in which a latent fires that often fires with this one; None: not known.
    """

    places: Int[np.ndarray, " n"]
    vectors: Float[np.ndarray, "n d"]
    decile: Int[np.ndarray, " n"]
    silent: Bool[np.ndarray, " pool"]
    hard: Bool[np.ndarray, " pool"] | None


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one latent's explanation; NaN where undefined.

    Attributes:
        values: Values by the name of the score.
        deciles: Values by the name of the score, one for each decile.
    """

    values: dict[str, float] = field(default_factory=dict)
    deciles: dict[str, Float[np.ndarray, " deciles"]] = field(default_factory=dict)


def excerpted(
    latent: Latent, bench: Bench, places: Int[np.ndarray, " n"], decile: Int[np.ndarray, " n"]
) -> dict[Size, Excerpted]:
    """The excerpts that a latent is scored on.

    Args:
        latent: The latent; it fires.
        bench: Source of the excerpts.
        places: As `Bench.drawn` draws them.
        decile: The decile of each.
    """
    fires = marked(bench.text, latent.test.row)
    found: dict[Size, Excerpted] = {}
    for size, side in SIZES.items():
        silent = ~bench.text.any_within(fires, bench.pool, side)
        hard = None
        if latent.partners is not None:
            partners = marked(bench.text, latent.partners)
            hard = silent & bench.text.any_within(partners, bench.pool, side)
        vectors = bench.embed(places, size)
        found[size] = Excerpted(places, vectors, decile, silent, hard)
    return found


def embedded(
    explanation: Float[np.ndarray, " d"], pooled: Mapping[Size, Float[np.ndarray, " pool"]],
    of: Mapping[Size, Excerpted], bench: Bench,
    without: Latent | None = None,
) -> Scores:  # fmt: skip
    """AUROC of the cosine of explanation and excerpt, where the latent fires against elsewhere.

    Args:
        explanation: Its vector.
        pooled: Its cosines with the pool's excerpts.
        of: The latent's excerpts.
        bench: Source of the excerpts.
        without: Excerpts in which this latent fires are left out: the explanation is of it.
    """
    found = Scores()
    other = None if without is None else marked(bench.text, without.test.row)
    for size, one in of.items():
        name = "embedding" if size == "whole" else "embedding_near"
        own, silent = np.ones(len(one.places), bool), one.silent
        if other is not None:
            own = ~bench.text.any_within(other, one.places, SIZES[size])
            silent = silent & ~bench.text.any_within(other, bench.pool, SIZES[size])
        positive, negative = one.vectors[own] @ explanation, pooled[size]
        below = _below(positive, negative[silent])
        found.values[name] = _mean(below)
        if without is None:
            found.deciles[name] = _by_decile(below, one.decile)
            hard = np.zeros(0) if one.hard is None else negative[one.hard]
            found.values[f"{name}_hard"] = _mean(_below(positive, hard))
    return found


def intruded(of: Mapping[Size, Excerpted], bench: Bench, seed: int) -> Scores:
    """Share of draws in which an excerpt without the latent is the odd one among four of a decile.

    It is found if its mean cosine to the other four is the lowest of all five (chance 1/5).
    """
    random = np.random.default_rng([bench.seed, seed, 1])
    found = Scores()
    for size, one in of.items():
        name = "intruder" if size == "whole" else "intruder_near"
        silent = np.flatnonzero(one.silent)
        right = np.full(DECILES, np.nan)
        for decile in range(DECILES) if len(silent) >= LEAST else ():
            own = one.vectors[one.decile == decile]
            if len(own) == PER_DECILE:
                drawn = bench.pooled[size][random.choice(silent, INTRUDERS)]
                right[decile] = np.mean([odd_one_out(own, intruder) for intruder in drawn])
        found.deciles[name] = right
        found.values[name] = _mean(right[np.isfinite(right)], least=1)
    return found


def odd_one_out(own: Float[np.ndarray, "n d"], intruder: Float[np.ndarray, " d"]) -> bool:
    """True where the intruder has the lowest mean cosine to the others; vectors have length 1.

    Example:
        >>> odd_one_out(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0.0, 1.0]))
        True
    """
    every = np.concatenate([own, intruder[None]])
    cosines = every @ every.T
    sums = cosines.sum(1) - np.diag(cosines)
    return bool(sums[-1] < sums[:-1].min())


def next_in_circle(names: Sequence[str]) -> list[int]:
    """For each latent the index of another one: the next in the order of the hashes of their names.

    Nothing keeps its place, and one more latent gives a new neighbour to one of the others alone,
    so that what was asked about the rest stays known.

    Example:
        >>> next_in_circle(["a", "b", "c"])
        [2, 0, 1]
    """
    order = sorted(range(len(names)), key=lambda i: sha256(names[i].encode()).digest())
    found = [0] * len(names)
    for i, other in zip(order, order[1:] + order[:1], strict=True):
        found[i] = other
    return found


def auroc(positive: Float[np.ndarray, " n"], negative: Float[np.ndarray, " m"]) -> float:
    """Area under the ROC curve: share of pairs in which the positive is larger, ties half.

    Example:
        >>> auroc(np.array([0.9, 0.4]), np.array([0.1, 0.6]))
        0.75
    """
    return float(_shares(positive, negative).mean())


def _shares(positive: np.ndarray, negative: np.ndarray) -> Float[np.ndarray, " n"]:
    """For each positive the share of the negatives that are smaller, ties half."""
    ordered = np.sort(negative)
    smaller = np.searchsorted(ordered, positive, "left")
    not_larger = np.searchsorted(ordered, positive, "right")
    return (smaller + not_larger) / (2 * len(negative))


def _below(positive: np.ndarray, negative: np.ndarray) -> Float[np.ndarray, " n"]:
    """`_shares`; NaN where there are too few negatives."""
    if len(negative) < LEAST:
        return np.full(len(positive), np.nan)
    return _shares(positive, negative)


def _mean(values: np.ndarray, least: int = LEAST_POSITIVES) -> float:
    return float(values.mean()) if len(values) >= least else float("nan")


def _by_decile(values: np.ndarray, decile: np.ndarray) -> Float[np.ndarray, " deciles"]:
    parts = (values[decile == i] for i in range(DECILES))
    return np.array([_mean(part, least=1) for part in parts])
