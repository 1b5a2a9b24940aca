"""Pictures of a frontier: fidelity over sparsity, live latents over size and penalty."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae.metrics.lines import Row, drawn_line, error_of
from sae.reports.figures import finish, plain_log_ticks, png
from sae.reports.style import GREY, MARKERS, TONES, axes_of

FIDELITY = {
    "fvu": "FVU (lower is better)",
    "ce_recovered_zero": "CE recovered, zero ablation (higher is better)",
}
L0_LABEL = "L0, latents that fire per token"
LIVE_LABEL = "latents that fire on the test split"

_MOST_NAMES = 12
_LOOKS = tuple(zip(TONES, MARKERS, strict=True))

Lines = Mapping[str, Sequence[Row]]


def live_by_size(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs that differ in their size alone, in that order."""
    return _sorted_groups(rows, lambda row: [_what(row), row["sparsity"]], "d_sae")


def live_by_l1(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs with an l1 above 0 that differ in it alone, in that order."""
    penalised = [row for row in rows if row["l1"]]
    return _sorted_groups(penalised, lambda row: [_what(row), f"x{row['dict_ratio']:g}"], "l1")


def fidelity_picture(lines: Lines) -> bytes:
    """FVU and CE recovered over L0 with 95 % intervals; dominated runs are hollow."""
    figure, panels = _figure()
    for axes, (name, label) in zip(panels, FIDELITY.items(), strict=True):
        dominated = "dominated" if name == "fvu" else "dominated_ce"
        drawn = []
        for (line, members), (tone, marker) in zip(lines.items(), cycle(_LOOKS)):
            points = [row for row in members if row[name] is not None and row["l0"] > 0]
            for row in points:
                errors = [
                    [[low], [high]] for low, high in (error_of(row, "l0"), error_of(row, name))
                ]
                axes.errorbar(row["l0"], row[name], xerr=errors[0], yerr=errors[1], fmt=marker,
                              color=tone, markersize=5, elinewidth=1,
                              markerfacecolor="white" if row[dominated] else None)  # fmt: skip
            axes.plot(*drawn_line(points, name), color=tone, linewidth=1.3, zorder=1)
            axes.plot([], [], marker, linestyle="-", color=tone, label=line)
            drawn += points
        finish(axes, L0_LABEL, label, [row["l0"] for row in drawn])
    _legend(figure, panels[0])
    figure.suptitle("hollow: another run is at least as good in both, better in one", fontsize=10)
    return png(figure)


def live_picture(rows: Sequence[Row]) -> bytes:
    """Live latents over the size of the dictionary and over l1 (the paper's figure 16)."""
    figure, (left, right) = _figure()
    known = [row for row in rows if row["live"] is not None]
    sizes = sorted({row["d_sae"] for row in known})
    left.plot(sizes, sizes, "--", color=GREY, linewidth=1, label="all latents")
    panels = (
        (left, live_by_size(known), "d_sae", "latents of the dictionary"),
        (right, live_by_l1(known), "l1", "l1"),
    )
    for axes, groups, key, label in panels:
        for (name, members), (tone, marker) in zip(groups.items(), cycle(_LOOKS)):
            x, y = [row[key] for row in members], [row["live"] for row in members]
            axes.plot(x, y, marker=marker, color=tone, markersize=5, linewidth=1.3, label=name)
        values = [float(row[key]) for members in groups.values() for row in members]
        finish(axes, label, LIVE_LABEL, values)
        if values and min(row["live"] for row in known) > 0:
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis, [float(row["live"]) for row in known])
        if 0 < len(axes.get_legend_handles_labels()[0]) <= _MOST_NAMES:
            axes.legend(fontsize=7, frameon=False)
    return png(figure)


def _what(row: Row) -> str:
    point = ".".join(str(row[key]) for key in ("site", "layer") if row[key] is not None)
    return " ".join(part for part in (row["architecture"], row["lm"], point) if part)


def _sorted_groups(
    rows: Sequence[Row], parts: Callable[[Row], list[str | None]], by: str
) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row[by]):
        groups.setdefault(" ".join(part for part in parts(row) if part), []).append(row)
    return groups


def _figure() -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    return figure, list(axes_of(figure, columns=2)[0])


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 3),
                  fontsize=8, frameon=False)  # fmt: skip
