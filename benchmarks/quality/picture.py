"""Every measure over L0, a row of panels for each data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

COLOURS = {
    "ours": "#0b7a75", "authors": "#7b4fa3", "sae-lens": "#d08c60",
    "dictionary_learning": "#4a7ab5", "sparsify": "#999999",
}  # fmt: skip
PANELS = {
    "fvu": "FVU", "recovered": "share of features recovered",
    "true_atoms": "share of atoms that are features", "ce_recovered_zero": "CE recovered (zero)",
}  # fmt: skip
MARKERS = {
    "l1": "o", "tied": "s", "april": "v", "topk": "^", "batch_topk": "D", "jumprelu": "*",
    "gated": "X", "matryoshka": "p", "p_anneal": "<",
}  # fmt: skip


def plot(frontiers: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A row of panels for each data set: FVU, and what it is worth, over L0."""
    panels = {data: _panels(rows) for data, rows in frontiers.items()}
    columns = max(map(len, panels.values()))
    figure = Figure(figsize=(6.5 * columns + 2, 5 * len(panels)), layout="constrained")
    grid = figure.add_gridspec(len(panels), columns)
    for i, (data, names) in enumerate(panels.items()):
        for j, name in enumerate(names):
            _panel(figure.add_subplot(grid[i, j]), data, frontiers[data], name)
    drawn = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        drawn |= dict(zip(labels, handles, strict=True))
    labels = sorted(drawn)
    figure.legend([drawn[name] for name in labels], labels, fontsize=8, loc="outside right center")
    return figure


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics that were measured of any of them."""
    measured = {name for row in rows for run in _measures(row) for name in run}
    return [name for name in PANELS if name in measured]


def _panel(axes: Any, data: str, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    drawn = [_draw(axes, row, name) for row in rows if row["at_l0"]]
    axes.set_xscale("log")
    axes.set_xlim(rows[0]["l0"] / 2.5, rows[0]["l0"] * 2.5)
    axes.axvline(rows[0]["l0"], color="#cccccc", linewidth=1, zorder=0)
    axes.set(xlabel="L0", ylabel=PANELS[name], title=data)
    if name == "fvu":
        axes.set_yscale("log")
    if drawn:
        _crop(axes, np.concatenate(drawn), low_is_good=name == "fvu")
    for axis in (axes.xaxis, axes.yaxis):  # 32, not 3.2 x 10^1
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(which="minor", labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)


def _crop(axes: Any, values: np.ndarray, *, low_is_good: bool) -> None:
    """Leave the worst tenth outside, which would press all others together."""
    low, high = np.nanquantile(values, [0, 0.9] if low_is_good else [0.1, 1])
    margin = 1.04 if low_is_good else 1.005
    if low < high:
        axes.set_ylim(low / margin, high * margin)


def _measures(row: Mapping[str, Any]) -> list[dict[str, float]]:
    """Numbers of every seed at the asked L0, cross entropy beside the rest."""
    ce = row["ce"] or [{}] * len(row["test"])
    return [test | more for test, more in zip(row["test"], ce, strict=True)]


def _draw(axes: Any, row: Mapping[str, Any], name: str) -> np.ndarray:
    """The seeds' mean with their standard deviation, and one seed at each further L0.

    Returns:
        What was drawn.
    """
    library = row["contender"].split("/")[0]
    style = {
        "color": COLOURS.get(library, "black"), "marker": MARKERS.get(row["family"], "."),
        "label": row["contender"], "alpha": 0.85, "linewidth": 1, "markersize": 5,
    }  # fmt: skip
    seeds = np.array([(run["l0"], run.get(name, np.nan)) for run in _measures(row)])
    # further points are of one seed: no bars
    points = [(run["l0"], run.get(name, np.nan), 0.0) for run in row["further"]]
    spread = float(seeds[:, 1].std(ddof=1)) if len(seeds) > 1 else 0.0
    points = np.array(sorted([*points, (*seeds.mean(0), spread)]))
    axes.errorbar(points[:, 0], points[:, 1], yerr=points[:, 2], capsize=2, elinewidth=1, **style)
    return points[:, 1]
