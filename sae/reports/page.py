"""One HTML page with tiles, interactive plots and tables that sort; it needs no network."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import escape
from plotly.offline import get_plotlyjs

from sae.language.pieces import visible
from sae.reports.style import TONES

_PERCENT = {"silent", "dense", "dead", "left_out", "predictions_left_out"}


@dataclass(frozen=True)
class Plot:
    """A plot for Plotly; colours, fonts and margins are the page's.

    Attributes:
        title: Above the plot.
        note: Text behind the title.
        traces: As Plotly takes them. Text from outside must have gone through `plain`.
        layout: Axes and legend.
        wide: True if it gets more room than a curve.
    """

    title: str
    note: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    wide: bool = False


class Cell(NamedTuple):
    """A cell's text, the number it is sorted by (without one, by the text), and where it leads."""

    text: str
    value: float | int | None = None
    link: str = ""


@dataclass(frozen=True)
class Table:
    """A table; a click on a column's head sorts by it.

    Attributes:
        name: Above the table.
        columns: Heads.
        rows: As long as `columns`.
        note: Meaning of the count.
        words: Number of columns on the left that are words; the others are numbers.
        prose: True if cells hold sentences, which break into lines.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    words: int = 1
    prose: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with plots, tables and foldable texts under it; empty ones are left out.

    Attributes:
        heading: Its name.
        plots: Plots, shown in a grid.
        tables: Below each other, or two beside each other.
        texts: Texts by name.
        latents: As `Record.as_plain` gives them: cards with coloured contexts.
        narrow: True if tables fit beside each other.
    """

    heading: str
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    latents: Sequence[Mapping[str, Any]] = ()
    narrow: bool = False


def render(
    title: str, subtitle: str, sections: Sequence[Section], tiles: Sequence[Mapping[str, str]] = ()
) -> bytes:
    """The page.

    Args:
        title: Its heading.
        subtitle: Below it.
        sections: Sections in order.
        tiles: `label`, `value` and `note` of the numbers to look at first.
    """
    shown = [
        part for part in sections
        if part.plots or part.tables or part.latents or any(part.texts.values())
    ]  # fmt: skip
    plots = [plot for part in shown for plot in part.plots]
    page = _template().render(
        title=title, subtitle=subtitle, tiles=tiles, sections=shown,
        plotly=_packed_plotly() if plots else "", tones=TONES,
    )  # fmt: skip
    return page.encode()


def plain(text: object) -> str:
    """Text from outside for a plot, where Plotly would read `<b>` or `<a>` as markup.

    Example:
        >>> plain("<b>x</b>")
        '&lt;b&gt;x&lt;/b&gt;'
    """
    return str(escape(str(text)))


def format_number(name: str, value: float | int | None) -> str:
    """A metric as people read it: shares of latents in percent, four digits otherwise.

    Example:
        >>> format_number("dense", 0.0123), format_number("l0", 92.3456), format_number("kl", None)
        ('1.23 %', '92.35', '–')
    """
    if value is None:
        return "–"
    if name in _PERCENT:
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def interval(name: str, low: float | None, high: float | None) -> str:
    """The two ends; empty where there are none."""
    if low is None or high is None:
        return ""
    return f"{format_number(name, low)} – {format_number(name, high)}"


def number(name: str, value: float | int | None) -> Cell:
    """A metric's cell."""
    return Cell(format_number(name, value), value)


@cache
def _packed_plotly() -> str:
    """Plotly's script; a third of its size, since every run has a page of its own."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    environment.filters["visible"] = visible
    return environment.get_template("report.html")
