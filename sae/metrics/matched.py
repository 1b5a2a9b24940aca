"""Means over the latents of dictionaries at equal firing counts, with intervals over documents.

Purity, entropy and information depend on how often a latent fires. So latents are put into bins of
density, and a dictionary's mean is weighted by the bins of the SAE that it is compared with. Bins
in which one of them has no latent are left out for both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats

from sae.metrics.bootstrap import Bootstrap, Interval, bootstrap_intervals

BINS_PER_DECADE = 4


class Sample(NamedTuple):
    """A number of the latents of one dictionary.

    Args:
        density: Share of the rows on which each fires.
        value: Its number; NaN where undefined.
        influence: Amount by which each group of documents moves it, 0 in the mean.
    """

    density: Float[np.ndarray, " latents"]
    value: Float[np.ndarray, " latents"]
    influence: Float[np.ndarray, "latents groups"]

    def defined(self) -> "Sample":
        """The latents whose number is defined."""
        there = np.isfinite(self.value)
        return Sample(self.density[there], self.value[there], self.influence[there])


class Mean(NamedTuple):
    """A mean over latents.

    Args:
        value: The mean.
        influence: Amount by which each group of documents moves it.
    """

    value: float
    influence: Float[np.ndarray, " groups"]

    def __sub__(self, other: "Mean") -> "Mean":
        return Mean(self.value - other.value, self.influence - other.influence)

    def interval(self, bootstrap: Bootstrap) -> Interval | None:
        """Bootstrap over groups of documents; None where there is one group only."""
        sums = {
            "term": torch.from_numpy(self.value + self.influence),
            "count": torch.ones(len(self.influence), dtype=torch.float64),
        }
        found = bootstrap_intervals(
            lambda drawn: {"mean": drawn["term"] / drawn["count"]}, sums, **bootstrap.model_dump()
        )
        return found["mean"]


class Matched(NamedTuple):
    """Means of two groups of dictionaries (one a seed) over the bins that all of them fill.

    Args:
        first: Samples of the dictionaries of the first group.
        second: Samples of the second group, weighted as the first.
        coverage: Share of the first group's latents in these bins.
        left_out: Lower ends of the bins of the first group that are left out.
    """

    first: list[Mean]
    second: list[Mean]
    coverage: float
    left_out: list[float]


def density_bins(density: Float[np.ndarray, " latents"]) -> Int[np.ndarray, " latents"]:
    """The bin of each density, four a decade; bin 0 begins at 1.

    Example:
        >>> density_bins(np.array([1.0, 0.5, 0.1, 0.05])).tolist()
        [0, -2, -4, -6]
    """
    return np.floor(BINS_PER_DECADE * np.log10(density) + 1e-9).astype(np.int64)


def matched_means(first: Sequence[Sample], second: Sequence[Sample]) -> Matched | None:
    """Means at equal firing counts; None where no bin has latents of all.

    Args:
        first: Dictionaries that say how often latents fire.
        second: Dictionaries to compare them with.
    """
    samples = [one.defined() for one in (*first, *second)]
    bins = [density_bins(one.density) for one in samples]
    pooled, counts = np.unique(np.concatenate(bins[: len(first)]), return_counts=True)
    common = np.array([all((b in ours) for ours in map(set, bins)) for b in pooled.tolist()], bool)
    if not common.any():
        return None
    weights = counts[common] / counts[common].sum()
    means = [
        _weighted(one, at, pooled[common], weights) for one, at in zip(samples, bins, strict=True)
    ]
    return Matched(
        means[: len(first)], means[len(first) :], float(counts[common].sum() / counts.sum()),
        (10.0 ** (pooled[~common] / BINS_PER_DECADE)).tolist(),
    )  # fmt: skip


def plain_mean(sample: Sample) -> Mean | None:
    """Mean over all latents whose number is defined; None where there is none."""
    defined = sample.defined()
    if not len(defined.value):
        return None
    return Mean(float(defined.value.mean()), defined.influence.mean(0))


def mean_of(means: Sequence[Mean]) -> Mean:
    """Mean of the means of several dictionaries."""
    return Mean(
        float(np.mean([one.value for one in means])), np.mean([one.influence for one in means], 0)
    )


def seed_interval(
    values: Sequence[float], others: Sequence[float] = (), level: float = 0.95
) -> Interval | None:
    """Interval of the mean over seeds, or of its distance from that of others (Welch's t).

    Args:
        values: One value for each seed.
        others: Subtracted in the mean; a single one counts as exact.
        level: Confidence level of the intervals.

    Returns:
        None with fewer than two seeds.

    Example:
        >>> low, high = seed_interval([1.0, 2.0, 3.0])
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    if len(values) < 2:
        return None
    parts = [np.var(group, ddof=1) / len(group) for group in (values, others) if len(group) > 1]
    sizes = [len(group) for group in (values, others) if len(group) > 1]
    variance = float(sum(parts))
    middle = float(np.mean(values)) - (float(np.mean(others)) if len(others) else 0.0)
    if variance == 0:
        return middle, middle
    freedom = variance**2 / sum(p**2 / (n - 1) for p, n in zip(parts, sizes, strict=True))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return middle - half, middle + half


def _weighted(
    sample: Sample, at: np.ndarray, bins: np.ndarray, weights: Float[np.ndarray, " bins"]
) -> Mean:
    value, influence = 0.0, np.zeros(sample.influence.shape[1])
    for one, weight in zip(bins, weights, strict=True):
        there = at == one
        value += weight * float(sample.value[there].mean())
        influence += weight * sample.influence[there].mean(0)
    return Mean(value, influence)
