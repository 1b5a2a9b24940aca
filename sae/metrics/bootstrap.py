"""Confidence intervals by resampling documents.

Tokens of one document are not independent, documents are: so documents are drawn, with
replacement, and every metric is computed again of the drawn documents' sums.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.settings import Settings, setting

Interval = tuple[float, float]


class Bootstrap(Settings):
    """Settings of intervals."""

    where = "bootstrap."

    num_resamples: int = setting(1000, ge=1, help="resamples of the documents")
    seed: int = setting(0, ge=0, help="decides the resamples")
    level: float = setting(0.95, gt=0, lt=1, help="share of the resamples that an interval holds")


def multinomial_weights(
    num_groups: int, num_resamples: int, seed: int
) -> Float[Tensor, "resamples groups"]:
    """Draws of each group in each resample; every row sums to `num_groups`. Float64.

    Example:
        >>> multinomial_weights(4, 2, seed=0).sum(-1)
        tensor([4., 4.], dtype=torch.float64)
    """
    probabilities = np.full(num_groups, 1 / num_groups)
    drawn = np.random.default_rng(seed).multinomial(num_groups, probabilities, size=num_resamples)
    return torch.from_numpy(drawn).double()


def bootstrap_intervals(
    metrics: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    sums: Mapping[str, Float[Tensor, "groups ..."]],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval | None]:
    """Percentile intervals of metrics that are functions of sums over groups.

    Args:
        metrics: Makes metrics of sums, for any leading axes.
        sums: Sums of each group (a document, or some); no group may be empty.
        num_resamples: Bootstrap resamples.
        seed: Decides the resamples; the same seed gives the same intervals.
        level: Share of the resamples that the interval holds.

    Returns:
        (low, high) by metric, or None: with fewer than two groups, and where the metric is
        undefined in some resample.
    """
    num_groups = len(next(iter(sums.values())))
    if num_groups < 2:
        return dict.fromkeys(metrics({name: value.sum(0) for name, value in sums.items()}))
    weights = multinomial_weights(num_groups, num_resamples, seed)
    resampled = metrics({name: weights @ value.double().cpu() for name, value in sums.items()})
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    intervals: dict[str, Interval | None] = {}
    for name, values in resampled.items():
        low, high = values.quantile(tails).tolist()
        intervals[name] = (low, high) if np.isfinite([low, high]).all() else None
    return intervals
