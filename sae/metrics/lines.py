"""Lines through runs: which runs one is made of, the area under it, what seeds change."""

from collections.abc import Mapping, Sequence
from math import log10
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae.metrics.bootstrap import Bootstrap

LINE = ("lm", "architecture", "site", "layer", "dict_ratio")
"""Runs that agree in these make one line."""
BOOTSTRAP = Bootstrap()
"""Bootstrap of the intervals of areas."""
SPREAD = ("l0", "fvu", "delta_ce")
"""Metrics that the spread over seeds is given of."""

Row = dict[str, Any]


def area(
    l0: Sequence[float | int], fvu: Sequence[float], low: float | int, high: float | int
) -> float:
    """Area under FVU over log10 L0 from `low` to `high`, straight between the points.

    Args:
        l0: L0 of the points, increasing and above 0.
        fvu: FVU of the points.
        low: Lower end, at least the first L0.
        high: Upper end, at most the last L0.

    Example:
        >>> area([1, 100], [0.4, 0.2], 1, 100), round(area([1, 100], [0.4, 0.2], 10, 100), 9)
        (0.6000000000000001, 0.25)
    """
    x = np.log10(np.asarray(l0, dtype=float))
    return _area_of(x, np.asarray(fvu, dtype=float), log10(low), log10(high))


def areas(rows: Sequence[Row]) -> list[Row]:
    """The area under each line, over its own range of L0 and over that of all lines of its place.

    Seeds of one setting, and runs of equal L0, count once, with the means of their L0 and FVU.
    Less is better; only `common_*` may be compared between lines. None where a line has one L0
    only, or the lines share no range. Intervals: see `area_interval`.
    """
    lines = []
    for members in grouped([row for row in rows if row["l0"] > 0], ("place", *LINE)).values():
        points = points_of(members)
        x, y = _means(points, "l0"), _means(points, "fvu")
        own = area(x, y, x[0], x[-1]) if len(x) > 1 else None
        line: Row = {"line": line_of(members[0]), **{key: members[0][key] for key in LINE}}
        line |= {"place": members[0]["place"], "runs": len(members), "points": len(points),
                 "l0_from": x[0], "l0_to": x[-1], "area": own,
                 **_ends("area", None if own is None else area_interval(points, x[0], x[-1])),
                 "mean_fvu": None if own is None else own / log10(x[-1] / x[0])}  # fmt: skip
        lines.append((line, points))
    for line, points in lines:
        drawn = [other for other, _ in lines
                 if other["place"] == line["place"] and other["area"] is not None]  # fmt: skip
        low = max((other["l0_from"] for other in drawn), default=0)
        high = min((other["l0_to"] for other in drawn), default=0)
        shared = line["area"] is not None and low < high
        found = None
        if shared:
            found = area(_means(points, "l0"), _means(points, "fvu"), low, high)
        line |= {
            "common_from": low if shared else None, "common_to": high if shared else None,
            "common_area": found,
            **_ends("common_area", area_interval(points, low, high) if shared else None),
            "common_mean_fvu": None if found is None else found / log10(high / low),
        }  # fmt: skip
    return [line for line, _ in lines]


def points_of(members: Sequence[Row]) -> list[list[Row]]:
    """The points of a line in the order of L0, each the runs that it is the mean of.

    Runs that differ in their seed alone are one point, and so are runs of equal L0.
    """
    groups = []
    for found in grouped(members, ("setting",)).values():
        groups += [found] if _are_seeds(found) else [[row] for row in found]
    by_l0: dict[float, list[Row]] = {}
    for found in groups:
        by_l0.setdefault(fmean(row["l0"] for row in found), []).extend(found)
    return [by_l0[l0] for l0 in sorted(by_l0)]


def drawn_line(members: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """L0 and a measure at the points of a line: it goes through the means of seeds."""
    points = points_of(members)
    return _means(points, "l0"), _means(points, key)


def area_interval(
    points: Sequence[Sequence[Row]],
    low: float | int,
    high: float | int,
    bootstrap: Bootstrap = BOOTSTRAP,
) -> tuple[float, float] | None:
    """Interval of the area from `low` to `high`, by a parametric bootstrap of the runs' intervals.

    A run's files hold intervals over documents, not the sums of its documents, so that these
    cannot be drawn again. Instead every L0 and FVU is drawn from the two halves of normal
    distributions whose 95 % is its interval. The runs of a line are measured on the same
    documents, which are hard for all of them or easy: all L0 move together, and all FVU do, by
    one number a draw each. Independent draws would cancel and make the interval too short; these
    make it rather too long. Beyond the outermost points FVU stays what it is there.

    Args:
        points: Runs of each point, in the order of L0.
        low: L0 that the area begins at.
        high: L0 that it ends at.
        bootstrap: Draws, seed and level.

    Returns:
        None if some run has no interval of its FVU or L0.
    """
    rows = [row for found in points for row in found]
    if any(row[f"{key}_{end}"] is None
           for row in rows for key in ("l0", "fvu") for end in ("low", "high")):  # fmt: skip
        return None
    z = np.random.default_rng(bootstrap.seed).normal(size=(2, bootstrap.num_resamples))
    x, y = (
        np.stack([np.mean([_drawn(row, key, draws) for row in found], axis=0) for found in points])
        for key, draws in zip(("l0", "fvu"), z, strict=True)
    )
    log_x = np.sort(np.log10(x.clip(min=1e-9)), axis=0)
    ends = log10(low), log10(high)
    found = [_area_of(*draw, *ends) for draw in zip(log_x.T, y.T, strict=True)]
    tails = [(1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2]
    first, last = np.quantile(found, tails).tolist()
    return first, last


def seed_spreads(rows: Sequence[Row]) -> list[Row]:
    """Mean, ends and standard deviation over the seeds of each setting that has several.

    The deviation is that of a sample (over n - 1). None where a run lacks the measure.
    """
    spreads = []
    for found in grouped(rows, ("place", *LINE, "setting")).values():
        if not _are_seeds(found):
            continue
        spread: Row = {"line": line_of(found[0]), "sparsity": found[0]["sparsity"],
                       "place": found[0]["place"], "seeds": len(found)}  # fmt: skip
        for key in SPREAD:
            values = [row[key] for row in found]
            known = None not in values
            spread |= {
                key: fmean(values) if known else None, f"{key}_min": min(values) if known else None,
                f"{key}_max": max(values) if known else None,
                f"{key}_std": stdev(values) if known else None,
            }  # fmt: skip
        spreads.append(spread)
    return spreads


def line_of(row: Mapping[str, Any]) -> str:
    """Settings that the runs of a line have in common.

    Example:
        >>> line_of({"lm": "gpt2", "architecture": "topk", "site": "resid", "layer": 4,
        ...          "dict_ratio": 8.0})
        'topk gpt2 resid.4 x8'
    """
    point = ".".join(str(row[key]) for key in ("site", "layer") if row[key] is not None)
    ratio = "" if row["dict_ratio"] is None else f"x{row['dict_ratio']:g}"
    return " ".join(part for part in (row["architecture"], row["lm"], point, ratio) if part)


def by_line(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs of each line in the order of L0; lines of two places differ by the place's name."""
    groups = grouped(rows, ("place", *LINE)).values()
    names = [line_of(members[0]) for members in groups]
    return {
        name if names.count(name) == 1 else f"{name} ({members[0]['place']})": sorted(
            members, key=lambda row: row["l0"]
        )
        for name, members in zip(names, groups, strict=True)
    }


def error_of(row: Row, name: str) -> tuple[float, float]:
    """Lengths of the interval below and above a value; 0 where there is none.

    Example:
        >>> error_of({"l0": 5.0, "l0_low": 4.0, "l0_high": 7.0}, "l0")
        (1.0, 2.0)
    """
    value, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    return (
        (0.0, 0.0)
        if low is None or high is None
        else (max(0.0, value - low), max(0.0, high - value))
    )


def grouped(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by their values of some keys, in the order in which these come first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _area_of(x: NDArray[np.float64], y: NDArray[np.float64], low: float, high: float) -> float:
    inside = x[(x > low) & (x < high)]
    at = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(at, x, y), at))


def _are_seeds(rows: Sequence[Row]) -> bool:
    """True if runs of one setting are there once for each of several seeds."""
    seeds = [row["seed"] for row in rows]
    return len(rows) > 1 and None not in seeds and len(set(seeds)) == len(seeds)


def _means(points: Sequence[Sequence[Row]], key: str) -> list[float]:
    return [fmean(row[key] for row in found) for found in points]


def _drawn(row: Row, key: str, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """A value moved by `z` standard deviations, of its upper half where z is above 0."""
    below, above = (length / NormalDist().inv_cdf(0.975) for length in error_of(row, key))
    return row[key] + z * np.where(z > 0, above, below)


def _ends(name: str, ends: tuple[float, float] | None) -> Row:
    return {f"{name}_low": ends and ends[0], f"{name}_high": ends and ends[1]}
