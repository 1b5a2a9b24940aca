"""`report.html` of a run: curves, tables and settings in one file that needs no network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae.activations.from_config import ends_of
from sae.artifacts.runs import metric, read_json
from sae.dictionaries.from_config import sparsity_of
from sae.errors import ArtifactError
from sae.reports.figures import Scale, curves_plot, histogram_plot
from sae.reports.files import read_metrics, read_yaml, write_bytes
from sae.reports.page import Cell, Plot, Section, Table, format_number, interval, number, render

# Title, what it means, curves (label -> key of metrics.csv), scale of the values
_PANELS: tuple[tuple[str, str, dict[str, str], Scale], ...] = (
    ("Loss", "all terms together", {"train": "train/loss"}, "log"),
    (
        "FVU",
        "variance left unexplained",
        {"train": "train/fvu", "val": "val/fvu", "val, median row": "val/fvu_median"},
        "log",
    ),
    ("L0", "latents that fire per token", {"train": "train/l0", "val": "val/l0"}, "log"),
    (
        "Dead",
        "share of latents",
        {"dead": "train/dead", "silent on val": "val/silent"},
        "from zero",
    ),
    (
        "CE recovered",
        "1 = like the LM itself",
        {"zero ablation": "val/ce_recovered_zero", "mean ablation": "val/ce_recovered_mean"},
        "plain",
    ),
)
_LABELS = {
    "perplexity_clean": "Perplexity clean", "perplexity_sae": "Perplexity with the SAE",
    "top1_agreement": "Top-1 agreement",
    "fvu_median": "Median of ‖e‖² / ‖x − mean‖²", "fvu_under_4_medians": "FVU under 4 medians",
    "fvu_all_rows": "FVU over all rows", "first_direction": "Variance in the first direction",
    "left_out": "Rows left out", "predictions_left_out": "Predictions left out",
    "fvu": "FVU", "mse": "MSE", "l0": "L0", "kl": "KL(clean ‖ SAE)", "l2_ratio": "L2 ratio",
    "ce_clean": "CE clean", "ce_sae": "CE with the SAE", "ce_zero": "CE zero-ablated",
    "ce_mean": "CE mean-ablated", "delta_ce": "CE increase",
    "ce_recovered_zero": "CE recovered (zero)", "ce_recovered_mean": "CE recovered (mean)",
}  # fmt: skip


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` from whatever the run folder holds so far.

    Reads `config.yaml`, `metrics.csv`, `results.json` and `manifest.json`; what is missing is left
    out of the page.

    Returns:
        Path of the page.

    Raises:
        ArtifactError: If the folder holds none of them, or a damaged one.
    """
    folder = Path(run_folder)
    config_text = _text(folder / "config.yaml")
    config = read_yaml(folder / "config.yaml")
    results = read_json(folder / "results.json")
    manifest = read_json(folder / "manifest.json")
    curves = read_metrics(folder / "metrics.csv")
    if not (config_text or results or manifest or curves):
        raise ArtifactError(
            f"{folder} is not a run folder: it holds no config.yaml, metrics.csv, results.json or "
            "manifest.json. Give the folder that train.py printed."
        )
    training = _training(results.get("training"))
    sections = [
        Section("Curves", plots=_plots(results, curves)),
        Section("Results", tables=[*_tables(results), *training], narrow=True),
        Section("What it learned", latents=_latents(results)),
        Section("How latents formed", latents=_formed(read_json(folder / "features.json"))),
        Section("Sessions", tables=_sessions(manifest)),
        Section("Settings", texts={
            "config.yaml": config_text,
            "manifest.json": json.dumps(manifest, indent=2) if manifest else "",
        }),
    ]  # fmt: skip
    name = folder.resolve().name
    unfinished = "" if results else " · not finished yet: the numbers are the latest ones"
    page = render(title_of(_mapping(config)) or name, f"Run {name}{unfinished}", sections,
                  _tiles(results, curves))  # fmt: skip
    path = folder / "report.html"
    write_bytes(path, page)
    return path


def results_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every metric of every evaluation of a `results.json` as a row of plain values.

    Returns:
        Rows of `eval`, `metric`, `value`, `low`, `high` and `counted_on`.

    Example:
        >>> core = {"metrics": {"l0": {"value": 9.5, "low": 9.0, "high": 10.0}},
        ...         "tokens": {"vectors": 2048}}
        >>> list(results_table({"core": core})[0].values())
        ['core', 'l0', 9.5, 9.0, 10.0, '2,048 vectors']
    """
    rows = []
    for evaluation, result in results.items():
        if not isinstance(result, Mapping) or not isinstance(result.get("metrics"), Mapping):
            continue
        counts = result.get("tokens") or {}
        counted_on = ", ".join(f"{count:,} {unit}" for unit, count in counts.items())
        for name, found in result["metrics"].items():
            estimate = {key: found.get(key) for key in ("value", "low", "high")}
            row = {"eval": evaluation, "metric": name, **estimate, "counted_on": counted_on}
            rows.append(row)
    return rows


def title_of(config: Mapping[str, Any]) -> str:
    """One line that tells a run from others.

    Example:
        >>> title_of({"sae": {"architecture": "topk", "k": 64}, "lm": {"name": "gpt2"},
        ...           "activations": {"site": "resid", "layer": 4}})
        'topk k=64 · gpt2 · resid.4'
    """
    sae, lm, activations = (_mapping(config.get(key)) for key in ("sae", "lm", "activations"))
    sparsity = sparsity_of(sae)
    point = str(ends_of(activations)) if "site" in activations else ""
    parts = [" ".join([sae.get("architecture", ""), *sparsity]), lm.get("name", ""), point]
    return " · ".join(part for part in parts if part)


def _tiles(results: dict[str, Any], curves: Mapping[str, Any]) -> list[dict[str, str]]:
    """The numbers to look at first, from the test split or the last validation."""
    tiles = []
    for label, evaluation, name, curve in (
        ("FVU", "core", "fvu", "val/fvu"),
        ("Median FVU", "core", "fvu_median", "val/fvu_median"),
        ("L0", "core", "l0", "val/l0"),
        ("CE recovered", "downstream", "ce_recovered_zero", "val/ce_recovered_zero"),
        ("Dead", "training", "dead", "train/dead"),
    ):
        found = metric(results, evaluation, name)
        if evaluation == "training":
            found = {"value": _mapping(results.get("training")).get(name)}
        if found.get("value") is not None:
            ends = interval(name, found.get("low"), found.get("high"))
            tiles.append({"label": label, "value": format_number(name, found["value"]),
                          "note": ends or "at the end of training"})  # fmt: skip
        elif curve in curves:
            last = curves[curve][1][-1]
            note = "latest value"
            tiles.append({"label": label, "value": format_number(name, last), "note": note})
    return tiles


def _plots(results: Mapping[str, Any], curves: Mapping[str, Any]) -> list[Plot]:
    plots = []
    for title, note, keys, scale in _PANELS:
        present = {label: curves[key] for label, key in keys.items() if key in curves}
        if present:
            plots.append(curves_plot(title, note, present, scale))
    for part in (results.get("core"), results.get("training")):
        details = _mapping(_mapping(part).get("details", part))
        found = _mapping(details.get("firing_histogram"))
        if {"log10_edges", "latents", "silent"} <= found.keys():
            edges, latents, silent = found["log10_edges"], found["latents"], found["silent"]
            plots.append(histogram_plot("Firing", "latents by how often", edges, latents, silent))
            break
    return plots


def _tables(results: Mapping[str, Any]) -> list[Table]:
    """The rows of each evaluation as the page shows them."""
    rows: dict[str, list[list[Cell]]] = {}
    notes = {}
    for row in results_table(results):
        key = row["metric"]
        label = _LABELS.get(key) or str(key).replace("_", " ").capitalize()
        ends = Cell(interval(key, row["low"], row["high"]), row["low"])
        rows.setdefault(row["eval"], []).append([Cell(label), number(key, row["value"]), ends])
        if row["counted_on"]:
            split = results[row["eval"]].get("details", {}).get("split", "test")
            notes[row["eval"]] = f"{split.capitalize()} split, {row['counted_on']}"
        if row["low"] is not None:
            notes[row["eval"]] += "; 95 % intervals by bootstrap over documents"
    return [
        Table(name, ("Metric", "Value", "Interval"), found, notes.get(name, ""))
        for name, found in rows.items()
    ]  # fmt: skip


def _training(training: object) -> list[Table]:
    rows = [
        [Cell(key.replace("_", " ").capitalize()), number(key, value)]
        for key, value in _mapping(training).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return [Table("training", ("Number", "Value"), rows)] if rows else []


def _sessions(manifest: Mapping[str, Any]) -> list[Table]:
    rows = []
    for session in manifest.get("sessions", []):
        if isinstance(session, Mapping):
            rate = _mapping(session.get("training")).get("vectors_per_second") or 0
            steps = [session.get(key) for key in ("from_step", "to_step")]
            rows.append([
                Cell(str(session.get("started_utc", "–"))[:19].replace("T", " ")),
                Cell(str(session.get("status", "–"))),
                *(Cell("–" if step is None else str(step), step) for step in steps),
                Cell(f"{rate:,.0f}", rate),
            ])  # fmt: skip
    columns = ("Started (UTC)", "Status", "From step", "To step", "Vectors/s")
    return [Table("", columns, rows, words=2)] if rows else []


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _formed(looks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The latents of the callback `features`, each with the contexts of all looks."""
    found = looks.get("looks") or []
    latents = []
    for column in zip(*(look["latents"] for look in found), strict=False):
        contexts = []
        for look, one in zip(found, column, strict=True):
            contexts.append({"note": _when(look, one), "pieces": (), "values": (), "peak": 0})
            contexts += [{**context, "max": one["max"]} for context in one["contexts"]]
        latents.append({**column[-1], "contexts": contexts})
    return latents


def _when(look: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    fires = f"fires on {100 * one['density']:.3g} %" if one["density"] else "is silent"
    return f"After {look['tokens']:,} tokens it {fires}"


def _latents(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The latents of the evaluation `glimpse`."""
    return (results.get("glimpse") or {}).get("details", {}).get("latents", [])
