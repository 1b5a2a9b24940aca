"""Means over latents with intervals, and differences between dictionaries at equal densities."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from sae.metrics.bootstrap import Bootstrap, bootstrap_intervals
from sae.metrics.classification import draws, interval
from sae.metrics.matched import BINS_PER_DECADE, density_bins, seed_interval

_DECADES = 6


class Interval(NamedTuple):
    """A number with its interval over latents; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


def mean(values: Sequence[float] | np.ndarray, bootstrap: Bootstrap) -> Interval:
    """The mean of the numbers that are defined."""
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return Interval(None, None, None)
    sums = {"sum": torch.from_numpy(found), "count": torch.ones(len(found), dtype=torch.float64)}
    ends = bootstrap_intervals(
        lambda drawn: {"mean": drawn["sum"] / drawn["count"]}, sums, **bootstrap.model_dump()
    )["mean"]
    return Interval(float(found.mean()), *(ends or (None, None)))


def difference(
    first: Float[np.ndarray, " latents"], second: Float[np.ndarray, " others"],
    bootstrap: Bootstrap,
) -> Interval:  # fmt: skip
    """Mean of the first dictionary less that of the second; None where one has no number.

    Args:
        first: Numbers of the latents of a dictionary; NaN where undefined.
        second: Numbers of the latents of another dictionary.
        bootstrap: Settings of the interval: the latents of both are drawn again.
    """
    ours, theirs = ((np.ones(len(values)), values) for values in (first, second))
    return difference_at_equal_density(ours, theirs, bootstrap)[0]  # all are in one bin


def difference_at_equal_density(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray],
    bootstrap: Bootstrap,
) -> tuple[Interval, float]:  # fmt: skip
    """Mean of the first dictionary less that of the second, over the bins that both fill.

    Within each bin the two means are compared; bins are weighted by the first one's latents. Both
    dictionaries' latents are drawn again for the interval, with replacement.

    Args:
        first: Densities and numbers of the latents of a dictionary; NaN where undefined.
        second: Densities and numbers of the latents of another dictionary.
        bootstrap: Settings of the interval.

    Returns:
        The difference, and the share of the first one's latents in the common bins.
    """
    ours, theirs = _by_bin(*first, bootstrap, seed=0), _by_bin(*second, bootstrap, seed=1)
    common = (ours.counts[0] > 0) & (theirs.counts[0] > 0)
    if not common.any():
        return Interval(None, None, None), 0.0
    there = common & (ours.counts > 0) & (theirs.counts > 0)  # a resample may empty a bin
    weights = np.where(there, ours.counts, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.where(there, ours.sums / ours.counts - theirs.sums / theirs.counts, 0)
        samples = (gaps * weights).sum(1) / weights.sum(1)
    covered = float(ours.counts[0][common].sum() / ours.counts[0].sum())
    return Interval(
        float(samples[0]), *(interval(samples, bootstrap.level) or (None, None))
    ), covered


def over_seeds(
    name: str, value: float | None, means: Sequence[float], bootstrap: Bootstrap
) -> dict[str, float | None]:
    """The value with Student's half width of the means of seeds; it need not be their mean.

    Args:
        name: Name of the two columns.
        value: The value.
        means: The mean of each seed.
        bootstrap: Its level.
    """
    low, high = seed_interval(means, (), bootstrap.level) or (None, None)
    if value is None or low is None or high is None:
        return {f"{name}_low": None, f"{name}_high": None}
    return {f"{name}_low": value - (high - low) / 2, f"{name}_high": value + (high - low) / 2}


def correlation(
    first: Float[np.ndarray, " latents"], second: Float[np.ndarray, " latents"],
    bootstrap: Bootstrap,
) -> Interval:  # fmt: skip
    """Pearson's r over latents; None where one of the two does not vary.

    Args:
        first: A number of each latent.
        second: Another number of each.
        bootstrap: Settings of the interval: latents are drawn again.
    """
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return Interval(None, None, None)
    a, b = ((one - one.mean()) / one.std() for one in (first, second))
    weights = draws(len(a), bootstrap.num_resamples, bootstrap.seed) / len(a)
    sums = weights @ np.stack([a, b, a * a, b * b, a * b], axis=1)
    variances = (sums[:, 2] - sums[:, 0] ** 2) * (sums[:, 3] - sums[:, 1] ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = (sums[:, 4] - sums[:, 0] * sums[:, 1]) / np.sqrt(variances)
    return Interval(float(samples[0]), *(interval(samples, bootstrap.level) or (None, None)))


class _Binned(NamedTuple):
    """Sums and numbers of latents by bin of density, of all latents and then of each resample."""

    sums: Float[np.ndarray, "draws bins"]
    counts: Float[np.ndarray, "draws bins"]


def _by_bin(density: np.ndarray, value: np.ndarray, bootstrap: Bootstrap, seed: int) -> _Binned:
    there = np.isfinite(value)
    bins = BINS_PER_DECADE * _DECADES + 1
    if not there.any():
        return _Binned(np.zeros((1, bins)), np.zeros((1, bins)))
    own = np.eye(bins)[np.maximum(density_bins(density[there]) + bins - 1, 0)]
    # the two dictionaries' latents are drawn apart from each other: by seeds of their own
    weights = draws(len(own), bootstrap.num_resamples, 2 * bootstrap.seed + seed)
    return _Binned(weights @ (own * value[there][:, None]), weights @ own)
