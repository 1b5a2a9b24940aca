"""One look for all pictures of benchmarks: legible 800 pixels wide, and to colour-blind readers."""

from typing import Any

COLOURS = {
    "ours": "#0072b2", "sae-lens": "#e69f00", "dictionary_learning": "#009e73",
    "sparsify": "#cc79a7", "authors": "#777777", "by hand": "#777777", "limit": "#bbbbbb",
}  # fmt: skip
"""Okabe and Ito's palette, which readers of all kinds of colour vision tell apart."""
MARKERS = {
    "ours": "o",
    "sae-lens": "s",
    "dictionary_learning": "^",
    "sparsify": "D",
    "authors": "x",
}
WIDTH, DPI = 8.0, 100
"""Inches and dots an inch: 800 pixels."""


def plain_axes(axes: Any) -> None:
    """Leave out the frame on the right and on top."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
