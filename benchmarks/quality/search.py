"""Pure parts of the protocol: learning rates to try, the penalty for an L0, FVU at equal L0."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

LR_STEP = 10**0.5
MISSED = 0.25
"""An L0 that is off by a larger share is not compared."""
_FARTHEST = math.log(8)
_FLATTEST = 0.2


class Point(NamedTuple):
    """One training: the value of its control, and what came out."""

    value: float
    l0: float
    fvu: float


def next_value(points: Sequence[Point], target: float, slope: float) -> float:
    """Value for which log L0, as a line over log value, meets the target.

    The line goes through the two points nearest to the target; through one, with `slope`. No step
    is longer than a factor of 8.

    Example:
        >>> round(next_value([Point(1.0, 64.0, 0.1)], target=32, slope=-1.0), 6)
        2.0
    """
    # of equally near points the later ones: a search that is stuck goes on
    near = sorted(reversed(points), key=lambda p: abs(_log(p.l0) - _log(target)))[:2]
    first = near[0]
    if len(near) == 2 and near[1].value != first.value:
        found = (_log(near[1].l0) - _log(first.l0)) / math.log(near[1].value / first.value)
        if found * slope > 0 and abs(found) > _FLATTEST:  # else noise, or a collapsed training
            slope = found
    step = (_log(target) - _log(first.l0)) / slope
    return first.value * math.exp(max(-_FARTHEST, min(_FARTHEST, step)))


def search(
    run: Callable[[float], Point],
    start: float,
    target: float,
    *,
    slope: float,
    tolerance: float,
    limit: int,
) -> list[Point]:
    """Train until an L0 is within a share `tolerance` of the target, at most `limit` times.

    Args:
        run: Trains with a value.
        start: First value.
        target: L0.
        slope: Of log L0 over log value, as a first guess; its sign counts.
        tolerance: Share of the target.
        limit: Trainings.
    """
    points = [run(start)]
    while len(points) < limit and not _within(points, target, tolerance):
        points.append(run(next_value(points, target, slope)))
    return points


def closest(points: Sequence[Point], target: float) -> Point:
    """The point whose L0 is nearest in ratio."""
    return min(points, key=lambda p: abs(_log(p.l0) - _log(target)))


def fvu_at(points: Sequence[Point], target: float) -> float:
    """FVU at an L0: log FVU is a line over log L0 between the two points around the target.

    Outside of the points their nearest two are extended; one point stands for itself. Not finite
    is infinite: a training that diverged loses.

    Example:
        >>> round(fvu_at([Point(1, 16, 0.4), Point(2, 64, 0.1)], target=32), 6)
        0.2
    """
    good = [p for p in points if math.isfinite(p.fvu) and p.fvu > 0 and p.l0 > 0]
    if not good:
        return math.inf
    below = [p for p in good if p.l0 <= target]
    above = [p for p in good if p.l0 > target]
    by_distance = sorted(good, key=lambda p: abs(_log(p.l0) - _log(target)))
    if below and above:
        first, second = closest(below, target), closest(above, target)
    elif len(by_distance) > 1:
        first, second = by_distance[:2]
    else:
        return good[0].fvu
    return corrected(first, log_slope(first, second), target)


def missed(points: Sequence[Point], target: float) -> bool:
    """Whether no L0 is within a quarter of the target and none lie on both sides of it."""
    alive = [p for p in points if math.isfinite(p.fvu)]
    both = any(p.l0 <= target for p in alive) and any(p.l0 > target for p in alive)
    return not alive or not (both or _within(alive, target, MISSED))


def score(points: Sequence[Point], target: float) -> float:
    """The objective of tuning: FVU at the L0; where it was missed, worse than all that met it.

    Example:
        >>> score([Point(1, 320, 0.01)], 32) > score([Point(1, 64, 0.9)], 32) > 1e6
        True
    """
    if not missed(points, target):
        return fvu_at(points, target)
    alive = [p for p in points if math.isfinite(p.fvu)]
    if not alive:
        return math.inf
    return 1e7 * abs(_log(closest(alive, target).l0) - _log(target))


def log_slope(first: Point, second: Point) -> float:
    """Slope of log FVU over log L0; 0 where the L0s are too close to tell."""
    apart = _log(second.l0) - _log(first.l0)
    if abs(apart) < 0.02:
        return 0.0
    return (math.log(second.fvu) - math.log(first.fvu)) / apart


def corrected(point: Point, slope: float, target: float) -> float:
    """FVU of a point moved along the slope to the target L0."""
    return point.fvu * math.exp(slope * (_log(target) - _log(point.l0)))


def tuned_lr(
    score: Callable[[float], float], default: float, tries: int = 3
) -> tuple[float, dict[float, float]]:
    """The default, half a decade above, and on in the better direction while it gets better.

    Args:
        score: What is made least.
        default: The first learning rate.
        tries: How many at most, from 2.

    Returns:
        The learning rate with the least score, and all scores.

    Example:
        >>> round(tuned_lr(lambda lr: abs(lr - 10), 1.0)[0], 6)
        10.0
    """
    powers = {power: score(default * LR_STEP**power) for power in (0, 1)}
    direction = 1 if powers[1] < powers[0] else -1
    while len(powers) < tries:
        power, least = max(powers) + 1 if direction > 0 else min(powers) - 1, min(powers.values())
        powers[power] = score(default * LR_STEP**power)
        if powers[power] >= least:
            break
    best = min(powers, key=lambda power: powers[power])
    return default * LR_STEP**best, {default * LR_STEP**p: powers[p] for p in powers}


def _within(points: Sequence[Point], target: float, tolerance: float) -> bool:
    return abs(closest(points, target).l0 / target - 1) <= tolerance


def _log(l0: float) -> float:
    return math.log(max(l0, 0.05))  # no latent fires: some number far below every target
