"""A look at the range of activations: can they be trained on in float32?"""

import logging
import math

import torch

from sae.activations.counted_rows import all_rows
from sae.activations.rows import Rows, parts_of
from sae.activations.stats import Stats
from sae.errors import StoreError

log = logging.getLogger(__name__)

LARGEST = math.sqrt(torch.finfo(torch.float32).max)
SMALLEST = 1e-15
"""Norms of rows whose squares float32 holds, the smaller with digits to spare."""
HUGE = 1e4
"""A row of so many median norms: beside its square, float32 has no digit left for other rows."""


def check_range(split: str, rows: Rows) -> None:
    """Refuse a split whose squares float32 cannot hold; warn of single huge rows.

    Raises:
        StoreError: If it does; the message gives the largest norm.
    """
    for every, part in zip(parts_of(all_rows(rows)), parts_of(rows), strict=True):
        check_norms(f"the {split} activations", part.stats)
        remedy = "decide every mean. activations.max_norm=10 leaves them out"
        if every.stats is not part.stats:
            remedy = "are left out (activations.max_norm)"
        largest = every.stats.norm_quantiles.get("max", 0.0)
        median = every.stats.norm_quantiles.get("0.5", 0.0)
        if median > 0 and largest > HUGE * median:
            log.warning(
                "The longest of the %s activations is %.3g, %.2g times the median: such rows %s.",
                split, largest, largest / median, remedy,
            )  # fmt: skip


def check_norms(what: str, stats: Stats) -> None:
    """Refuse activations whose squares overflow or vanish in float32.

    Raises:
        StoreError: If they do; the message gives the largest norm.
    """
    largest = stats.norm_quantiles.get("max", 0.0)
    if largest > LARGEST or 0 < largest < SMALLEST:
        fate = "overflow" if largest > 1 else "vanish"
        raise StoreError(
            f"The largest norm of {what} is {largest:.3g}: squares of such numbers {fate} in "
            "float32. Multiply the activations by a constant."
        )
