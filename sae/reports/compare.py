"""Tables and a heat map of a comparison of dictionaries."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sae.dictionaries.from_config import sparsity_of
from sae.evals.base import EvalResult
from sae.reports.figures import png
from sae.reports.files import table_bytes, write_bytes
from sae.reports.page import Cell, Plot, Section, Table, number, plain, render

Pair = Mapping[str, Any]
"""A row of the table `pairs`."""
Matrix = list[list[float | int | None]]
MATRICES = {
    "mmcs": "mean max cosine, row in column",
    "matched_share": "share matched one to one",
    "max_correlation": "mean max correlation, row in column",
}
"""Values that get a matrix and a heat map, with their titles."""
_MOST_NUMBERS = 12


def write_comparison(result: EvalResult, folder: Path) -> None:
    """Write `pairs.csv`, a matrix for each value, a picture and a page."""
    pairs, names = result.tables["pairs"].rows(), result.details["names"]
    write_bytes(folder / "pairs.csv", table_bytes(list(pairs[0]), pairs))
    matrices = {name: matrix(names, pairs, name) for name in MATRICES}
    for name, values in matrices.items():
        rows = [{"": a, **dict(zip(names, row, strict=True))}
                for a, row in zip(names, values, strict=True)]  # fmt: skip
        write_bytes(folder / f"{name}.csv", table_bytes(["", *names], rows))
    labels = _labels(names, result.provenance)
    write_bytes(folder / "compare.png", _picture(labels, matrices))
    write_bytes(folder / "report.html", _page(labels, pairs, matrices, result.settings))


def matrix(names: Sequence[str], pairs: Sequence[Pair], name: str) -> Matrix:
    """A value for each ordered pair: rows are looked for in columns; 1 on the diagonal."""
    known = {(pair["first"], pair["second"]): pair[name] for pair in pairs}
    return [[1.0 if a == b else known[a, b] for b in names] for a in names]


def _labels(names: Sequence[str], provenance: Mapping[str, Any]) -> list[str]:
    """Names of the SAEs, with architecture and sparsity."""
    labels = []
    for name in names:
        sae = provenance.get("saes", {}).get(name, {})
        settings = (sae.get("metadata", {}).get("settings") or {}).get("sae") or {}
        labels.append(" ".join([name, sae.get("architecture", ""), *sparsity_of(settings)]).strip())
    return labels


def _page(
    labels: Sequence[str], pairs: Sequence[Pair], matrices: Mapping[str, Matrix],
    settings: Mapping[str, Any],
) -> bytes:  # fmt: skip
    """`report.html`: the matrices as heat maps, and a table of all pairs."""
    names = [plain(label) for label in labels]
    plots = []
    for name, values in matrices.items():
        if len(names) > 1 and any(pair[name] is not None for pair in pairs):
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
    columns = list(pairs[0])
    rows = [
        [Cell(v) if name in ("first", "second") else number(name, v) for name, v in pair.items()]
        for pair in pairs
    ]
    num_tokens = settings.get("num_tokens")
    counted = f"Correlations on the first {num_tokens:,} test vectors. " if num_tokens else ""
    note = f"{counted}No number here has an interval. docs/guides/compare.md explains the columns."
    return render(
        "Dictionaries against each other",
        f"{len(names)} dictionaries",
        [Section("Matrices", plots), Section("Pairs", tables=[Table("", columns, rows, note, 2)])],
    )


def _picture(names: Sequence[str], matrices: Mapping[str, Matrix]) -> bytes:
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
    return png(figure)
