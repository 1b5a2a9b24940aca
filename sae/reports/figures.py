"""Plots of a run, as Plotly draws them; how Matplotlib's axes are ticked and pictures written."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sae.reports.page import Plot, plain
from sae.reports.style import GREY

Curve = tuple[Sequence[float], Sequence[float]]
Scale = Literal["plain", "log", "from zero"]
_MAX_POINTS = 1500
_FEW_POINTS = 40
_FEW_DECADES, _MANY_DECADES = 0.8, 2.5


def curves_plot(title: str, note: str, curves: Mapping[str, Curve], scale: Scale = "plain") -> Plot:
    """Curves over tokens.

    Args:
        title: Title of the plot.
        note: Meaning of the plot, in a few words.
        curves: (tokens, values) by label.
        scale: Scale of the values; `log` only where all are positive.
    """
    traces: list[dict[str, Any]] = []
    for label, curve in curves.items():
        x, y = _thinned(*curve)
        mode = "lines+markers" if len(x) <= _FEW_POINTS else "lines"
        traces.append({"type": "scatter", "mode": mode, "name": plain(label), "x": x, "y": y})
    axis: dict[str, Any] = {}
    if scale == "log" and all(y > 0 for trace in traces for y in trace["y"]):
        axis = log_axis([y for trace in traces for y in trace["y"]])
    elif scale == "from zero":
        axis = {"rangemode": "tozero"}
    layout = {
        "xaxis": {"title": {"text": "tokens"}, "tickformat": "~s", "showgrid": False},
        "yaxis": axis,
        "showlegend": len(traces) > 1,
    }
    return Plot(title, note, traces, layout)


def histogram_plot(
    title: str, note: str, log10_edges: Sequence[float], latents: Sequence[int], silent: int
) -> Plot:
    """Histogram of firing rates, with the silent latents as a bar of their own on the left."""
    width = log10_edges[1] - log10_edges[0]
    used = [i for i, count in enumerate(latents) if count]
    first = used[0] if used else len(latents) - 1
    left = log10_edges[first] - 2 * width
    ticks = list(range(math.ceil(log10_edges[first]), 1))
    edges = log10_edges[first:]
    hover = [f"{10**a:.2g} to {10**b:.2g}" for a, b in zip(edges, edges[1:], strict=False)]
    bars = {
        "type": "bar", "name": "latents", "width": 0.9 * width,
        "x": [edge + width / 2 for edge in edges[:-1]], "y": list(latents[first:]),
        "hovertext": hover,
    }  # fmt: skip
    apart = {"type": "bar", "name": "silent", "x": [left], "y": [silent], "width": 0.9 * width}
    layout = {
        "xaxis": {
            "title": {"text": "share of tokens on which a latent fires"}, "showgrid": False,
            "tickvals": [left, *ticks],
            "ticktext": ["silent", *(f"10<sup>{t}</sup>" if t < -2 else f"{10.0**t:g}"
                                     for t in ticks)],
        },
        "yaxis": {"title": {"text": "latents"}}, "showlegend": False,
    }  # fmt: skip
    return Plot(title, note, [bars, apart], layout)


def log_axis(values: Sequence[float | int]) -> dict[str, Any]:
    """A logarithmic axis of Plotly in plain numbers, with no more ticks than fit.

    Example:
        >>> log_axis([1, 20])["dtick"], log_axis([1, 1e4])["dtick"], "dtick" in log_axis([4, 6])
        ('D2', 1, False)
    """
    axis: dict[str, Any] = {"type": "log", "tickformat": "~g"}
    decades = math.log10(max(values) / min(values)) if values else 0
    if decades == 0 or decades >= _FEW_DECADES:  # for equal values Plotly shows two decades
        axis["dtick"] = "D2" if decades < _MANY_DECADES else 1
    return axis


def plain_log_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Tick a logarithmic axis in plain numbers: 1, 2, 5, or decades alone when they are many."""
    decades = math.log10(max(values) / min(values)) if values else 0
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < _MANY_DECADES else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_MAX_POINTS` of the points that can be drawn, the last one always among them."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    kept = points[::stride]
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [a for a, _ in kept], [b for _, b in kept]


def finish(axes: Axes, x_label: str, y_label: str, values: Sequence[float]) -> None:
    """Label axes, and tick the lower one by the logarithms of its values; say if there are none."""
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(True)
    if values:
        axes.set_xscale("log")
        plain_log_ticks(axes.xaxis, values)
    else:
        axes.text(0.5, 0.5, "no run has this", ha="center", va="center", color=GREY,
                  transform=axes.transAxes)  # fmt: skip
        axes.set(xticks=[], yticks=[])


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
