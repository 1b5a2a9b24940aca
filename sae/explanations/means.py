"""Means over latents with intervals, and differences between dictionaries at equal densities."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from sae.features.glimpse import BINS, HIGHEST, LOWEST
from sae.metrics.bootstrap import Bootstrap, bootstrap_intervals, multinomial_weights
from sae.metrics.classification import interval

EDGES = np.geomspace(LOWEST, HIGHEST, BINS + 1)
"""Borders of the bins of density; what is rarer or denser is in the outer ones."""


class Interval(NamedTuple):
    """A number with its interval over latents; None where undefined."""

    value: float | None
    low: float | None
    high: float | None


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


def bin_of(density: Sequence[float] | np.ndarray) -> Int[np.ndarray, " n"]:
    """The bin of density of each latent."""
    return np.clip(np.searchsorted(EDGES, density, side="right") - 1, 0, BINS - 1)


def difference_at_equal_density(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray],
    bootstrap: Bootstrap,
) -> tuple[Interval, float]:  # fmt: skip
    """Mean of the first dictionary less that of the second, over the bins that both fill.

    Within each bin the two means are compared; bins are weighted by the first one's latents. Both
    dictionaries' latents are drawn again for the interval, with replacement.

    Args:
        first: Densities and numbers of the latents of a dictionary; NaN where undefined.
        second: The same of another.
        bootstrap: How the interval is made.

    Returns:
        The difference, and the share of the first one's latents in the common bins.
    """
    sums, counts = zip(*(_by_bin(*one, bootstrap) for one in (first, second)), strict=True)
    common = (counts[0][0] > 0) & (counts[1][0] > 0)
    total = counts[0][0].sum()
    if not common.any():
        return Interval(None, None, None), 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = sums[0] / counts[0] - sums[1] / counts[1]
    drawn = common & (counts[0] > 0) & (counts[1] > 0)  # a draw may empty a bin
    weights = np.where(drawn, counts[0], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = np.where(drawn, gaps, 0)
        samples = (samples * weights).sum(1) / weights.sum(1)
    ends = interval(samples, bootstrap.level)
    covered = float(counts[0][0][common].sum() / total)
    return Interval(float(samples[0]), *(ends or (None, None))), covered


def _by_bin(
    density: np.ndarray, value: np.ndarray, bootstrap: Bootstrap
) -> tuple[Float[np.ndarray, "draws bins"], Float[np.ndarray, "draws bins"]]:
    """Sums and numbers of latents by bin, of all latents and then of each resample."""
    there = np.isfinite(value)
    density, value = density[there], value[there]
    own = np.eye(BINS)[bin_of(density)]
    if not len(value):
        return np.zeros((1, BINS)), np.zeros((1, BINS))
    drawn = multinomial_weights(len(value), bootstrap.num_resamples, bootstrap.seed).numpy()
    weights = np.concatenate([np.ones((1, len(value))), drawn])
    return weights @ (own * value[:, None]), weights @ own
