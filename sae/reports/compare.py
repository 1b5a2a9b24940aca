"""Tables and a heat map of a comparison of dictionaries."""

import csv
import io
import re
from pathlib import Path

from matplotlib.figure import Figure

from sae.dictionaries.from_config import sparsity_of
from sae.evals.compare import Compared, Pair
from sae.provenance import write_json
from sae.reports.files import write_bytes
from sae.reports.page import Cell, Plot, Section, Table, number, plain, render

MATRICES = {
    "mmcs": "mean max cosine, row in column",
    "matched_share": "share matched one to one",
    "max_correlation": "mean max correlation, row in column",
}
"""Values that get a matrix and a heat map, with their titles."""
_MOST_NUMBERS = 12


def write_comparison(compared: Compared, folder: str | Path) -> Path:
    """Write `pairs.csv`, a matrix for each value, `nearest/`, `compare.json`, a picture, a page.

    Returns:
        The folder.
    """
    folder = Path(folder)
    (folder / "nearest").mkdir(parents=True, exist_ok=True)
    columns = ["first", "second", *compared.pairs[0].values]
    rows = [[p.first, p.second, *p.values.values()] for p in compared.pairs]
    write_bytes(folder / "pairs.csv", _csv([columns, *rows]))
    matrices = {name: matrix(compared, name) for name in MATRICES}
    for name, values in matrices.items():
        table = [[one, *row] for one, row in zip(compared.names, values, strict=True)]
        write_bytes(folder / f"{name}.csv", _csv([["", *compared.names], *table]))
    for pair in compared.pairs:
        write_bytes(folder / "nearest" / _file_of(pair), _csv(_latents(pair)))
    write_bytes(folder / "compare.png", _picture(_labels(compared), matrices))
    write_bytes(folder / "report.html", _page(compared, matrices))
    pairs = [{"first": p.first, "second": p.second, **p.values} for p in compared.pairs]
    content = {"eval": "compare", "names": compared.names, "pairs": pairs}
    write_json(
        folder / "compare.json",
        content | {"settings": compared.settings, "provenance": compared.provenance},
    )
    return folder


def matrix(compared: Compared, name: str) -> list[list[float | int | None]]:
    """A value for each ordered pair: rows are looked for in columns; 1 on the diagonal."""
    known = {(pair.first, pair.second): pair.values[name] for pair in compared.pairs}
    return [[1.0 if a == b else known[a, b] for b in compared.names] for a in compared.names]


def _labels(compared: Compared) -> list[str]:
    """What the SAEs are, behind their names."""
    labels = []
    for name in compared.names:
        sae = compared.provenance.get("saes", {}).get(name, {})
        settings = (sae.get("metadata", {}).get("settings") or {}).get("sae") or {}
        labels.append(" ".join([name, sae.get("architecture", ""), *sparsity_of(settings)]).strip())
    return labels


def _file_of(pair: Pair) -> str:
    return re.sub(r"[^\w.=+-]+", "_", f"{pair.first}--{pair.second}") + ".csv"


def _latents(pair: Pair) -> list[list[object]]:
    """A row for each latent of the first dictionary; empty cells where nothing is known."""
    header = ["latent", "nearest", "cosine", "matched", "matched_cosine", "correlated",
              "correlation"]  # fmt: skip
    latents = int(pair.values["latents"] or 0)
    cells: list[list[object]] = [[""] * 6 for _ in range(latents)]
    if pair.nearest is not None:
        for row, index, value in zip(cells, pair.nearest.index.tolist(),
                                     pair.nearest.value.tolist(), strict=True):  # fmt: skip
            row[0:2] = index, f"{value:.4f}"
    if pair.matching is not None:
        for first, second, value in zip(*(part.tolist() for part in pair.matching), strict=True):
            cells[first][2:4] = second, f"{value:.4f}"
    if pair.correlated is not None:
        for row, index, value in zip(cells, pair.correlated.index.tolist(),
                                     pair.correlated.value.tolist(), strict=True):  # fmt: skip
            if value == value:  # NaN: never varies
                row[4:6] = index, f"{value:.4f}"
    return [list(header), *([i, *row] for i, row in enumerate(cells))]


def _csv(rows: list) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _page(compared: Compared, matrices: dict[str, list[list[float | int | None]]]) -> bytes:
    """`report.html`: the matrices as heat maps, and a table of all pairs."""
    names = [plain(name) for name in _labels(compared)]
    plots = []
    for name, values in matrices.items():
        if len(names) > 1 and any(pair.values[name] is not None for pair in compared.pairs):
            text = [["" if v is None else f"{v:.3g}" for v in row] for row in values]
            trace = {
                "type": "heatmap", "x": names, "y": names, "z": values, "zmin": 0, "zmax": 1,
                "colorscale": "Viridis", "text": text, "hoverongaps": False,
                "texttemplate": "%{text}" if len(names) <= _MOST_NUMBERS else "",
                "hovertemplate": "%{y}<br>in %{x}<br>%{z:.4f}<extra></extra>",
            }  # fmt: skip
            layout = {"xaxis": {"showgrid": False, "tickangle": -45, "type": "category"},
                      "yaxis": {"showgrid": False, "autorange": "reversed",
                                "type": "category"}, "showlegend": False}  # fmt: skip
            plots.append(Plot(MATRICES[name], "", [trace], layout, wide=True))
    columns = ["first", "second", *compared.pairs[0].values]
    rows = [
        [Cell(pair.first), Cell(pair.second), *(number(name, v) for name, v in pair.values.items())]
        for pair in compared.pairs
    ]
    num_tokens = compared.settings.get("num_tokens")
    counted = f"Correlations on the first {num_tokens:,} test vectors. " if num_tokens else ""
    note = f"{counted}No number here has an interval. docs/compare.md says what the columns are."
    return render(
        "Dictionaries against each other",
        f"{len(names)} dictionaries",
        [Section("Matrices", plots), Section("Pairs", tables=[Table("", columns, rows, note, 2)])],
    )


def _picture(names: list[str], matrices: dict[str, list[list[float | int | None]]]) -> bytes:
    """A heat map for each matrix that has a value beside the diagonal."""
    shown = {
        name: values for name, values in matrices.items()
        if any(v is not None for i, row in enumerate(values) for j, v in enumerate(row) if i != j)
    }  # fmt: skip
    side = max(3.2, 0.42 * len(names) + 1.6)
    figure = Figure(
        figsize=(max(1, len(shown)) * (side + 0.8), side + 0.6), dpi=150, layout="constrained"
    )
    for axes, (name, values) in zip(
        figure.subplots(1, max(1, len(shown)), squeeze=False)[0], shown.items(), strict=False
    ):
        numbers = [[float("nan") if v is None else float(v) for v in row] for row in values]
        image = axes.imshow(numbers, vmin=0, vmax=1, cmap="viridis")
        axes.set_title(MATRICES[name], fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(length=0)
        figure.colorbar(image, ax=axes, shrink=0.8)
        for i, row in enumerate(numbers if len(names) <= _MOST_NUMBERS else []):
            for j, value in enumerate(row):
                if value == value:
                    colour = "black" if value > 0.6 else "white"
                    axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                              color=colour)  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
