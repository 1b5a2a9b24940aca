"""Figures as inline SVG that takes its colours from the page: one file for light and dark."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

Curve = tuple[Sequence[float], Sequence[float]]
Scale = Literal["plain", "log", "from zero"]

# Colours that no plot uses; in the SVG they become what the page's style sheet says.
_THEME = {
    "#010101": "currentColor",
    "#020202": "var(--grid)",
    "#030303": "var(--first)",
    "#040404": "var(--second)",
}
_TEXT, _GRID, _FIRST, _SECOND = _THEME
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lightning-sae",  # the same input gives the same bytes
    "font.size": 11,
    "text.color": _TEXT,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "grid.color": _GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_MAX_POINTS = 1500


def curves_figure(title: str, curves: Mapping[str, Curve], scale: Scale = "plain") -> Markup:
    """One or two curves over tokens.

    Args:
        title: Of the plot.
        curves: (tokens, values) by label.
        scale: Of the values; `log` only where all are positive.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        for colour, (label, curve) in zip((_FIRST, _SECOND), curves.items(), strict=False):
            x, y = _thinned(*curve)
            marker = "o" if len(x) <= 40 else None
            axes.plot(x, y, color=colour, label=label, marker=marker, markersize=4)
        values = [y for _, ys in curves.values() for y in ys]
        if scale == "log" and all(y > 0 for y in values):
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis, values)
        elif scale == "from zero":
            axes.set_ylim(0, 1.05 * max(*values, 0.01))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("tokens")
        if len(curves) > 1:
            axes.legend(loc="best", fontsize=10)
        return _svg(figure, title)


def histogram_figure(
    title: str, log10_edges: Sequence[float], latents: Sequence[int], silent: int
) -> Markup:
    """How many latents fire how often, with the silent ones as a bar of their own on the left."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure()
        width = log10_edges[1] - log10_edges[0]
        used = [i for i, count in enumerate(latents) if count]
        first = used[0] if used else len(latents) - 1
        left = log10_edges[first] - 2.5 * width
        axes.bar(
            log10_edges[first:-1], latents[first:], width=0.9 * width, align="edge", color=_FIRST
        )
        axes.bar([left], [silent], width=0.9 * width, align="edge", color=_SECOND)
        ticks = [t for t in range(math.ceil(log10_edges[first]), 1)]
        axes.set_xticks(
            [left + 0.45 * width, *ticks],
            ["silent", *(f"$10^{{{t}}}$" if t < -2 else f"{10.0**t:g}" for t in ticks)],
        )
        axes.set_xlabel("share of tokens on which a latent fires")
        axes.set_ylabel("latents")
        return _svg(figure, title)


def plain_log_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Tick a logarithmic axis in plain numbers: 1, 2, 5, or decades alone when they are many."""
    decades = math.log10(max(values) / min(values)) if values else 0
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, axis="y", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    return figure, axes


def _svg(figure: Figure, title: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for sentinel, colour in _THEME.items():
        text = text.replace(sentinel, colour)
    label = Markup('<svg role="img" aria-label="{}"').format(title)
    return label + Markup(text.removeprefix("<svg"))


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_MAX_POINTS` of the points that can be drawn, the last one always among them."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    kept = points[::stride]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [a for a, _ in kept], [b for _, b in kept]
