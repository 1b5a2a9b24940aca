"""One look for all plots, those of pages and those of benchmarks."""

from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.figure import Figure

TONES = (
    "#2563eb", "#d97706", "#2ca25f", "#c44e9b", "#8c6bd1", "#d1495b", "#2a9db0", "#8f8f2f",
    "#9c6b4a", "#7f8793",
)  # fmt: skip
"""Colours in the order in which lines take them."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
"""Markers in the same order, for readers who do not tell the colours apart."""
GREY, GRID = "#999999", "#e3e6ec"
"""Limits and bounds; the grid."""
_LOOK: Any = {
    "axes.prop_cycle": cycler(color=TONES), "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
}  # fmt: skip


def axes_of(figure: Figure, rows: int = 1, columns: int = 1, **grid: Any) -> np.ndarray:
    """Axes of a figure, [rows columns], without a frame on the right and on top.

    Args:
        figure: The figure.
        rows: Number of rows.
        columns: Number of columns.
        grid: Further arguments of `Figure.subplots`.
    """
    with rc_context(_LOOK):
        return figure.subplots(rows, columns, squeeze=False, **grid)
