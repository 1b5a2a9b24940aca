"""FVU over L0 by library, a panel for each data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.style import COLOURS, MARKERS, WIDTH
from sae.reports.style import axes_of

POINTS = 9
"""L0s at which frontiers are compared, from half of the asked one to twice."""


def plot(frontiers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """The best kind of SAE of each library at each L0; bands reach to its median kind."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panels = axes_of(figure, columns=len(frontiers))[0]
    for axes, (data, rows) in zip(panels, frontiers.items(), strict=True):
        _panel(axes, data, [row for row in rows if row["at_l0"]])
    panels[0].set_ylabel("FVU (lower is better)", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center",
                  ncols=5, frameon=False, fontsize=8)  # fmt: skip
    figure.suptitle("Line: best kind of each library. Band: up to its median kind.", fontsize=9)
    return figure


def _panel(axes: Any, data: str, rows: Sequence[Mapping[str, Any]]) -> None:
    libraries: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        libraries.setdefault(row["contender"].split("/")[0], []).append(row)
    libraries.pop("authors", None)  # far above the others: in the table
    axes.set(xscale="log", yscale="log", xlabel="L0")
    axes.set_title(data, fontsize=10)
    known = [*COLOURS]
    for library in sorted(libraries, key=lambda name: [*known, name].index(name)):
        of_library = libraries[library]
        l0 = of_library[0]["l0"]
        grid = np.geomspace(l0 / 2, l0 * 2, POINTS)
        curves = np.stack([frontier(row, grid) for row in of_library])
        there = ~np.isnan(curves).all(axis=0)
        x, best = grid[there], np.nanmin(curves[:, there], axis=0)
        middle = np.nanmedian(curves[:, there], axis=0)
        colour, marker = COLOURS.get(library, "black"), MARKERS.get(library, ".")
        axes.plot(x, best, color=colour, marker=marker, markersize=4, label=library)
        axes.fill_between(x, best, middle, color=colour, alpha=0.13, linewidth=0)
        axes.xaxis.set_major_locator(FixedLocator([l0 / 2, l0, l0 * 2]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):  # 32, not 3.2 x 10^1
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def frontier(
    row: Mapping[str, Any], grid: Float[np.ndarray, " points"]
) -> Float[np.ndarray, " points"]:
    """FVU at every L0 of the grid, by lines between the measured points on logarithmic axes.

    Args:
        row: One contender: `test`, its seeds at the asked L0, and `further`, one seed at others.
        grid: L0.

    Returns:
        NaN a tenth and more beyond the measured points.
    """
    seeds = np.array([(run["l0"], run["fvu"]) for run in row["test"]])
    points = [(run["l0"], run["fvu"]) for run in row["further"] if run["l0"] > 0]
    l0, fvu = np.array(sorted([*points, tuple(seeds.mean(axis=0))])).T
    found = np.exp(np.interp(np.log(grid), np.log(l0), np.log(fvu)))
    found[(grid < l0[0] / 1.1) | (grid > l0[-1] * 1.1)] = np.nan
    return found
