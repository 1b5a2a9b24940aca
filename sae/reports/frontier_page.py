"""`report.html` of a frontier and of a sweep: plots that answer the pointer, tables that sort."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.metrics.lines import SPREAD, Row, drawn_line, error_of
from sae.reports.figures import log_axis
from sae.reports.frontier_plots import (
    FIDELITY,
    L0_LABEL,
    LIVE_LABEL,
    live_by_l1,
    live_by_size,
)
from sae.reports.page import Cell, Plot, Section, Table, interval, number, plain, render
from sae.reports.style import GREY

Lines = Mapping[str, Sequence[Row]]

_WORDS = ("run", "line", "sparsity", "dominated")
_LAST = ("layer", "dict_ratio")
_COUNTS = {"test_vectors": "test vectors", "test_tokens": "test tokens (CE)",
           "test_predictions": "predictions",
           "training_tokens": "trained on"}  # fmt: skip
_HEADS = {"l0": "L0", "fvu": "FVU", "ce_recovered_zero": "CE recovered (zero)",
          "delta_ce": "CE increase", "silent": "silent", "dead": "dead",
          "live": "live"}  # fmt: skip
_WITH_INTERVAL = ("l0", "fvu", "ce_recovered_zero", "delta_ce")
_AREA_HEADS = {"runs": "runs", "points": "points", "l0_from": "L0 from", "l0_to": "to",
               "area": "area", "mean_fvu": "mean FVU", "common_from": "common L0 from",
               "common_to": "to", "common_area": "common area",
               "common_mean_fvu": "common mean FVU"}  # fmt: skip
_AREAS = ("area", "common_area")


def frontier_page(
    rows: Sequence[Row],
    lines: Lines,
    areas: Sequence[Row],
    seeds: Sequence[Row],
    missing: Mapping[str, str],
) -> bytes:
    """The page of `eval=[frontier]`.

    Args:
        rows: As of `sae.reports.frontier.Frontier`.
        lines: These rows, by line.
        areas: The area under each line.
        seeds: The spread over the seeds of each setting that has several.
        missing: Metrics that a run lacks, by its name.
    """
    subtitle = f"{len(rows)} runs on {len(lines)} line{'s'[: len(lines) != 1]}"
    return render(
        "Sparsity against fidelity", subtitle, sections(rows, lines, areas, seeds, missing)
    )


def sweep_page(
    name: str, columns: Sequence[str], jobs: Sequence[Row], frontier: Sequence[Section]
) -> bytes:
    """The page of a sweep: all its jobs, and the frontier of those that are finished.

    Args:
        name: Name of the sweep.
        columns: Columns of the table.
        jobs: Rows of `sweep.csv`.
        frontier: Sections that `sections` made; empty while no job is finished.
    """
    states = [job["status"] for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    body = [[_cell(column, job.get(column)) for column in columns] for job in jobs]
    table = Table("", columns, body, "Metrics of the test split", words=2)
    return render(
        f"Sweep {name}", f"{len(jobs)} jobs: {counts}" if jobs else "no jobs yet",
        [*frontier, Section("Jobs", tables=[table] if jobs else [])],
    )  # fmt: skip


def sections(
    rows: Sequence[Row],
    lines: Lines,
    areas: Sequence[Row],
    seeds: Sequence[Row],
    missing: Mapping[str, str],
) -> list[Section]:
    """Plots and tables of a frontier; the arguments of `frontier_page`."""
    note = "hollow: another run is at least as good in both, better in one; bars: 95 % intervals"
    plots = [
        _fidelity(lines, measure, label, note)
        for measure, label in FIDELITY.items()
        if any(row[measure] is not None for row in rows)
    ]
    known = [row for row in rows if row["live"] is not None and row["d_sae"]]
    live = []
    if known:
        live.append(_live(live_by_size(known), "d_sae", "latents of the dictionary"))
    if any(row["l1"] for row in known):
        live.append(_live(live_by_l1(known), "l1", "l1"))
    lacking = [[Cell(name), Cell(what)] for name, what in missing.items()]
    named = [Table("", ("run", "what"), lacking, words=2)] if lacking else []
    return [
        Section("Frontier", plots=plots, tables=[_runs(lines)]),
        Section("Area under each line", tables=[_areas(areas)] if areas else []),
        Section("Seeds", tables=[_seeds(seeds)] if seeds else []),
        Section("Live latents", plots=live),
        Section("Missing", tables=named),
    ]


def _runs(lines: Lines) -> Table:
    heads: list[str] = [*_WORDS]
    for name, head in _HEADS.items():
        heads += [head, "95 % interval"] if name in _WITH_INTERVAL else [head]
    body = []
    for line, row in [(line, row) for line, members in lines.items() for row in members]:
        dominated = {True: "yes", False: "no", None: "–"}[row["dominated"]]
        cells = [Cell(row["run"]), Cell(line), Cell(row["sparsity"] or "–"), Cell(dominated)]
        for name in _HEADS:
            cells.append(number(name, row[name]))
            if name in _WITH_INTERVAL:
                low, high = row[f"{name}_low"], row[f"{name}_high"]
                cells.append(Cell(interval(name, low, high), low))
        body.append(cells + [number(key, row[key]) for key in (*_COUNTS, *_LAST)])
    note = (
        "Test split; intervals by bootstrap over documents, none for shares of latents. Dominated: "
        "in L0 and FVU, by a run that was measured on the same vectors."
    )
    return Table("Runs", [*heads, *_COUNTS.values(), *_LAST], body, note, words=len(_WORDS))


def _areas(areas: Sequence[Row]) -> Table:
    heads = ["line"]
    for key, head in _AREA_HEADS.items():
        heads += [head, "95 % interval"] if key in _AREAS else [head]
    body = []
    for line in areas:
        cells = [Cell(line["line"])]
        for key in _AREA_HEADS:
            cells.append(number(key, line[key]))
            if key in _AREAS:
                low, high = line[f"{key}_low"], line[f"{key}_high"]
                cells.append(Cell(interval(key, low, high), low))
        body.append(cells)
    note = (
        "Under FVU over log10 L0, less is better. Only the common columns can be compared: they "
        "are over the range of L0 that all lines of the same test vectors have. Intervals by a "
        "parametric bootstrap of the runs' own, all runs moved together since they share their "
        "documents; what seeds change is not in them."
    )
    return Table("Lines", heads, body, note)


def _seeds(seeds: Sequence[Row]) -> Table:
    heads = ["line", "sparsity", "seeds"]
    for key in SPREAD:
        heads += [f"{_HEADS[key]}, mean", "lowest – highest", "std"]
    body = []
    for spread in seeds:
        cells = [Cell(spread["line"]), Cell(spread["sparsity"] or "–"),
                 number("seeds", spread["seeds"])]  # fmt: skip
        for key in SPREAD:
            low, high = spread[f"{key}_min"], spread[f"{key}_max"]
            cells += [number(key, spread[key]), Cell(interval(key, low, high), low),
                      number(key, spread[f"{key}_std"])]  # fmt: skip
        body.append(cells)
    note = "Runs that differ in their seed alone; the line goes through their means."
    return Table("Settings with several seeds", heads, body, note, words=2)


def _fidelity(lines: Lines, measure: str, label: str, note: str) -> Plot:
    dominated = "dominated" if measure == "fvu" else "dominated_ce"
    traces, means = [], []
    for name, members in lines.items():
        points = [row for row in members if row[measure] is not None and row["l0"] > 0]
        x, y = drawn_line(points, measure)
        one_each = len(x) == len(points)
        trace: dict[str, Any] = {
            "type": "scatter", "mode": "lines+markers" if one_each else "markers",
            "name": plain(name),
            "x": [row["l0"] for row in points], "y": [row[measure] for row in points],
            "hovertext": [_hover(row, measure) for row in points], "hoverinfo": "text",
            "marker": {"size": 9, "symbol": ["circle-open" if row[dominated] else "circle"
                                             for row in points]},
        }  # fmt: skip
        for key, axis in (("l0", "error_x"), (measure, "error_y")):
            errors = [error_of(row, key) for row in points]
            trace[axis] = {
                "type": "data", "symmetric": False, "thickness": 1, "width": 2,
                "arrayminus": [below for below, _ in errors],
                "array": [above for _, above in errors],
            }  # fmt: skip
        trace["showlegend"] = bool(points)  # an empty line keeps its colour for the other plot
        traces.append(trace)
        if not one_each:
            means.append({"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip",
                          "showlegend": False, "line": {"color": GREY}})  # fmt: skip
    traces += means  # behind them in the order of colours
    layout = {
        "xaxis": log_axis([x for t in traces for x in t["x"]]) | {"title": {"text": L0_LABEL}},
        "yaxis": {"title": {"text": label}},
        "showlegend": True,
    }
    return Plot(label.partition(" (")[0], note, traces, layout, wide=True)


def _hover(row: Row, measure: str) -> str:
    parts = [plain(" ".join(str(row[key]) for key in ("run", "sparsity") if row[key]))]
    for key in ("l0", measure):
        ends = interval(key, row[f"{key}_low"], row[f"{key}_high"])
        found = number(key, row[key]).text + (f" ({ends})" if ends else "")
        parts.append(f"{_HEADS.get(key, key)} {found}")
    counted = row["test_vectors"] if measure == "fvu" else row["test_tokens"]
    if counted is not None:
        parts.append(f"on {counted:,} {'vectors' if measure == 'fvu' else 'tokens'}")
    return "<br>".join(parts)


def _live(groups: Lines, by: str, label: str) -> Plot:
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines+markers", "name": plain(name),
            "x": [row[by] for row in members], "y": [row["live"] for row in members],
            "hovertext": [
                f"{plain(row['run'])}<br>{row['live']:,} of {row['d_sae']:,} latents fire<br>"
                f"on {row['test_vectors'] or 0:,} vectors" for row in members
            ],
            "hoverinfo": "text",
        }
        for name, members in groups.items()
    ]  # fmt: skip
    if by == "d_sae":
        sizes = sorted({row["d_sae"] for members in groups.values() for row in members})
        traces.append({"type": "scatter", "mode": "lines", "name": "all latents", "x": sizes,
                       "y": sizes, "line": {"dash": "dash", "color": GREY}})  # fmt: skip
    layout = {
        "xaxis": log_axis([x for t in traces for x in t["x"]]) | {"title": {"text": label}},
        "yaxis": {"title": {"text": LIVE_LABEL}},
        "showlegend": True,
    }
    return Plot(f"Over {label}", "the paper's figure 16", traces, layout, wide=True)


def _cell(name: str, value: Any) -> Cell:
    if value is None:
        return Cell("–")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value))
    return Cell(str(value), value) if name in ("job", "layer") else number(name, value)
