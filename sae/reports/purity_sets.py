"""The section of the page of `purity` that is about classes of whole texts."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.evals.base import EvalResult
from sae.evals.purity_sets import SET_METRICS
from sae.reports.page import Cell, Plot, Section, Table, interval, number, plain

_WORDS = {
    "class_given_token": "Class given the token",
    "class_purity": "Purity of the class",
}


def set_section(result: EvalResult, least_coverage: float) -> Section:
    """The section; empty for a result without sets.

    Args:
        result: Result of the evaluation `purity`.
        least_coverage: Share of the SAE's latents under which a comparison is not plotted.
    """
    rows = [row for row in result.tables["sets"].rows() if row["number"] in SET_METRICS]
    covered = [row for row in rows if (row["coverage"] or 0) >= least_coverage]
    plots = [_dots(name, covered) for name in SET_METRICS] if covered else []
    tables = [_by_set(result.details["sets"]), _differences(rows)] if rows else []
    return Section("By class of whole texts", plots, tables)


def _dots(name: str, rows: Sequence[Mapping[str, Any]]) -> Plot:
    """The SAE less each control, a dot a set."""
    own = [row for row in rows if row["number"] == name]
    trace = {
        "type": "scatter", "mode": "markers", "marker": {"size": 9, "opacity": 0.7},
        "x": [row["difference"] for row in own], "y": [plain(row["control"]) for row in own],
        "text": [plain(row["set"]) for row in own], "hovertemplate": "%{text}: %{x:.3g}",
    }  # fmt: skip
    layout = {
        "xaxis": {"zeroline": True, "zerolinewidth": 2, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "showlegend": False,
    }
    note = "the SAE less the control, a dot a set; right of 0 the SAE has more"
    return Plot(_WORDS[name], note, [trace], layout, wide=True)


def _by_set(sets: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [Cell(of["name"]), Cell(" · ".join(f"{name}: {n:,}" for name, n in of["classes"].items())),
         number("", of["latents"]),
         *(cell for name in SET_METRICS for cell in _mean(of["means"][name])),
         number("", of["chance"]["class_purity"])]
        for of in sets
    ]  # fmt: skip
    heads = [head for name in SET_METRICS for head in (_WORDS[name].lower(), "interval")]
    columns = ["set", "texts of each class", "latents", *heads, "purity of all rows"]
    return Table("The SAE", columns, rows, "means over its latents", words=2)


def _mean(of: Mapping[str, Any]) -> tuple[Cell, Cell]:
    return number("", of["value"]), Cell(interval("", of["low"], of["high"]))


def _differences(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [Cell(row["set"]), Cell(row["control"]), Cell(_WORDS[row["number"]]),
         *(number("", row[key]) for key in ("sae", "of_control", "difference")),
         Cell(interval("", row["difference_low"], row["difference_high"])),
         Cell(interval("", row["seed_low"], row["seed_high"])), number("", row["coverage"])]
        for row in rows if row["coverage"] is not None
    ]  # fmt: skip
    columns = ["set", "control", "number", "SAE", "control's", "difference", "over texts",
               "over seeds", "latents covered"]  # fmt: skip
    return Table("The SAE and its controls by set", columns, cells,
                 "in the bins of density that both fill", words=3)  # fmt: skip
