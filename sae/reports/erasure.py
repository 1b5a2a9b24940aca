"""`index.html` of the evaluation `erasure`, and the files of the chosen latents beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.evals.base import EvalResult
from sae.evals.erasure import HEADLINE
from sae.features.erased_rows import OUTCOMES
from sae.features.sets import FeatureSet
from sae.reports.files import write_bytes
from sae.reports.page import Cell, Plot, Section, Table, interval, number, render

TASKS = {
    "gender": "Name → gender",
    "pronoun": "Name → pronoun",
    "transfer": "Fitted on gender, measured on the pronoun",
    "biographies": "Gender in biographies, the profession stays",
    "csv": "A CSV file",
}
_LINES = (HEADLINE, "delta", "zeroing", "random latents", "random directions")
_SYMBOLS = {"LEACE": "star", "SPLINCE": "hexagon", "mean difference": "square",
            "mean-affine": "square-open", "reconstruction": "x"}  # fmt: skip
_AXES = {
    "kl": ("KL on neutral text, nats", "mean over predictions"),
    "relative_size": ("Edit size, share of the row", "mean over edited rows of the task"),
}
_COLUMNS = {
    "probability": "two-way probability",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "calibrated_accuracy": "calibrated accuracy",
    "logit_difference": "logit difference",
    "linear_probe": "linear probe",
    "mlp_probe": "MLP probe",
    "kept_linear_probe": "linear probe, kept label",
    "kept_mlp_probe": "MLP probe, kept label",
    "size": "size",
    "relative_size": "size / row",
    "kl": "KL, nats",
    "ce": "CE, nats",
}


def write_erasure(result: EvalResult, folder: Path) -> None:
    """Write the page, and the latents of each fit: `features.json`, `features-<task>.json`.

    Args:
        result: Result of the evaluation `erasure`.
        folder: Folder to write them to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, content) in enumerate(result.details["features"].items()):
        FeatureSet(**content).save(
            folder / ("features.json" if i == 0 else f"features-{name}.json")
        )
    edits, areas = (result.tables[name].rows() for name in ("edits", "areas"))
    tasks = list(dict.fromkeys(row["task"] for row in edits))
    sections = []
    for task in tasks:
        own = [row for row in edits if row["task"] == task]
        sections.append(Section(
            TASKS[task],
            plots=[_curves(own, outcome, axis) for outcome in _outcomes(own) for axis in _AXES],
            tables=[_edits(own), _drops(own),
                    _areas([row for row in areas if row["task"] == task])],
        ))  # fmt: skip
    sections.append(Section("Chosen latents", tables=[_latents(result)]))
    fits = result.details["fits"]
    level = 100 * result.settings["bootstrap"]["level"]
    subtitle = "; ".join(
        f"{TASKS[name]}: {fit['training rows']:,} rows to fit on" for name, fit in fits.items()
    )
    subtitle += f" · {level:g} % intervals over names or texts, of KL and CE over documents"
    page = render(
        f"Concept erasure · {result.provenance['point']}", subtitle, sections,
        _tiles([row for row in edits if row["task"] == tasks[0]]),
    )  # fmt: skip
    write_bytes(folder / "index.html", page)


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [name for name in OUTCOMES if rows[0][f"drop_{name}"] is not None]


def _curves(rows: Sequence[Mapping[str, Any]], outcome: str, axis: str) -> Plot:
    (title, note), drop = _AXES[axis], f"drop_{outcome}"
    words = _COLUMNS[outcome]
    traces = []
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "none"):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row[axis])
        traces.append({
            "type": "scatter", "name": method,
            "mode": "lines+markers" if method in _LINES else "markers",
            "x": [row[axis] for row in own], "y": [row[drop] for row in own],
            "text": [_counted(row["latents"]) for row in own],
            "marker": {"size": 6 if method in _LINES else 12,
                       "symbol": _SYMBOLS.get(method, "circle")},
            "line": {"width": 3 if method == HEADLINE else 1.2},
            "error_y": {
                "type": "data", "symmetric": False, "thickness": 1, "width": 2,
                "array": [_off(row[f"{drop}_high"], row[drop]) for row in own],
                "arrayminus": [_off(row[drop], row[f"{drop}_low"]) for row in own],
            },
        })  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": title}, "type": "log"},
        "yaxis": {"title": {"text": f"drop of the {words}"}},
        "showlegend": True,
    }
    heading = f"{words[0].upper()}{words[1:]} against {'KL' if axis == 'kl' else 'the edit size'}"
    return Plot(heading, note, traces, layout, wide=True)


def _counted(latents: int) -> str:
    return "" if latents == 0 else f"{latents} of them"


def _off(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(0.0, high - low)


def _edits(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = {name: words for name, words in _COLUMNS.items() if rows[0][name] is not None}
    cells = [[*_edit(row), *(number("", row[name]) for name in shown)] for row in rows]
    return Table("Edits", ["edit", "latents", *shown.values()], cells)


def _drops(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = _outcomes(rows)
    cells = [
        [*_edit(row), *(
            cell for name in (f"drop_{outcome}" for outcome in shown)
            for cell in (number("", row[name]),
                         Cell(interval("", row[f"{name}_low"], row[f"{name}_high"])))
        )]
        for row in rows
    ]  # fmt: skip
    columns = [word for name in shown for word in (_COLUMNS[name], "interval")]
    note = "how much nearer to chance, .5, a number came"
    return Table("Drops", ["edit", "latents", *columns], cells, note)


def _edit(row: Mapping[str, Any]) -> list[Cell]:
    return [Cell(row["method"]), Cell(str(row["latents"] or ""), row["latents"])]


def _areas(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = [
        [Cell(row["method"]), Cell(_COLUMNS[row["outcome"]]), Cell(_AXES[row["axis"]][0]),
         number("", row["budget"]),
         number("", row["area"]), Cell(interval("", row["area_low"], row["area_high"]))]
        for row in rows
    ]  # fmt: skip
    note = "mean drop up to the budget, the cost of the cheaper of LEACE and the mean difference"
    columns = ["edit", "drop of", "cost", "budget", "area", "interval"]
    return Table("Areas", columns, cells, note, words=3)


def _latents(result: EvalResult) -> Table:
    cells = [
        [Cell(TASKS[name]), Cell(str(latent), latent), number("", weight)]
        for name, content in result.details["features"].items()
        for latent, weight in zip(content["latents"], content["weights"], strict=True)
    ]
    note = "by difference of class means times what the latent adds to a linear probe's logit"
    return Table("Latents", ["fitted on", "latent", "effect"], cells, note)


def _tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    wanted = (("none", "The LM itself"), (HEADLINE, "One latent"), ("LEACE", "LEACE"),
              ("random directions", "A random direction"))  # fmt: skip
    outcome = _outcomes(rows)[-1]
    tiles = []
    for method, label in wanted:
        own = [row for row in rows if row["method"] == method]
        if own:
            row = min(own, key=lambda row: row["latents"])
            label = label if row["latents"] <= 1 else f"{row['latents']}: {method}"
            note = f"{_COLUMNS[outcome]}; KL {number('', row['kl']).text}"
            tiles.append({"label": label, "value": number("", row[outcome]).text, "note": note})
    return tiles
