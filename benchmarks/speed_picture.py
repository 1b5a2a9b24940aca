"""Vectors a second, one bar for each library and kind."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.common import Spread
from benchmarks.style import COLOURS, WIDTH
from sae.reports.style import axes_of

Bars = Mapping[str, Sequence[tuple[str, str, Spread]]]
"""(contender, library, vectors a second) by heading, which begins with the architecture."""


def plot(bars: Bars, machine: str) -> Figure:
    """Compare the libraries kind by kind; what they have in common alone, in float32.

    Args:
        bars: Of all contenders. The tables hold those that are left out here: our other
            architectures and paths, bfloat16, loops by hand and the limit of the machine.
        machine: For the title.
    """
    shown = {title: list(_of_libraries(title, entries)) for title, entries in bars.items()}
    counts = [max(1, len(entries)) for entries in shown.values()]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.33 * sum(counts) + 0.35 * len(counts)),
                    layout="constrained")  # fmt: skip
    heights = {"height_ratios": counts}
    panels = axes_of(figure, len(shown), sharex=True, gridspec_kw=heights)[:, 0]
    for axes, (title, entries) in zip(panels, shown.items(), strict=True):
        for library, rate in entries:
            low, high = rate.median - rate.low, rate.high - rate.median
            axes.barh(library, rate.median / 1000, xerr=[[low / 1000], [high / 1000]],
                      color=COLOURS.get(library, "black"), height=0.7)  # fmt: skip
            axes.annotate(f"{rate.median / 1000:.1f}", (rate.high / 1000, library), (5, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10, loc="left")
    panels[-1].set_xlabel("thousand vectors a second (higher is better)", fontsize=9)
    figure.suptitle(f"One training step, float32, {machine}", fontsize=10)
    return figure


def _of_libraries(title: str, entries: Sequence[tuple[str, str, Spread]]) -> Any:
    """(library, rate) of those that have this architecture."""
    kind = title.split(",")[0]
    for name, library, rate in entries:
        ours = library == "ours" and name == f"{kind}, auto"
        theirs = library not in ("ours", "limit", "by hand") and not name.endswith("bf16")
        if ours or theirs:
            yield library, rate
