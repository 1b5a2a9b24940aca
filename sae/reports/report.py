"""`report.html` of a run: curves, tables and settings in one file that needs no network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sae.errors import ArtifactError
from sae.reports.figures import curves_figure, histogram_figure
from sae.reports.files import metric, read_json, read_metrics, read_yaml, write_bytes

# Title, what it means, curves (label -> key of metrics.csv), logarithmic values?
_PANELS: tuple[tuple[str, str, dict[str, str], bool], ...] = (
    ("Loss", "all terms together", {"train": "train/loss"}, True),
    ("FVU", "variance left unexplained", {"train": "train/fvu", "val": "val/fvu"}, True),
    ("L0", "latents that fire per token", {"train": "train/l0", "val": "val/l0"}, True),
    ("Dead", "share of latents", {"dead": "train/dead", "silent on val": "val/silent"}, False),
    (
        "CE recovered",
        "1 = like the LM itself",
        {"zero ablation": "val/ce_recovered_zero", "mean ablation": "val/ce_recovered_mean"},
        False,
    ),
)
_LABELS = {
    "perplexity_clean": "Perplexity clean", "perplexity_sae": "Perplexity with the SAE",
    "top1_agreement": "Top-1 agreement",
    "fvu": "FVU", "mse": "MSE", "l0": "L0", "kl": "KL(clean ‖ SAE)", "l2_ratio": "L2 ratio",
    "ce_clean": "CE clean", "ce_sae": "CE with the SAE", "ce_zero": "CE zero-ablated",
    "ce_mean": "CE mean-ablated", "delta_ce": "CE increase",
    "ce_recovered_zero": "CE recovered (zero)", "ce_recovered_mean": "CE recovered (mean)",
}  # fmt: skip
_PERCENT = {"silent", "dense", "dead"}


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
            f"{folder} is no run folder: it holds no config.yaml, metrics.csv, results.json or "
            "manifest.json. Give the folder that train.py printed."
        )
    config = config if isinstance(config, Mapping) else {}
    page = _template().render(
        name=folder.resolve().name,
        title=title_of(config) or folder.resolve().name,
        finished=bool(results),
        tiles=_tiles(results, curves),
        panels=_panels(results, curves),
        tables=_tables(results),
        training=_training(results.get("training")),
        sessions=[s for s in manifest.get("sessions", []) if isinstance(s, Mapping)],
        config=config_text,
        manifest=json.dumps(manifest, indent=2) if manifest else "",
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def title_of(config: Mapping[str, Any]) -> str:
    """One line that tells a run from others.

    Example:
        >>> title_of({"sae": {"architecture": "topk", "k": 64}, "lm": {"name": "gpt2"},
        ...           "site": "resid", "layer": 4})
        'topk k=64 · gpt2 · resid.4'
    """
    sae, lm = config.get("sae"), config.get("lm")
    sae = sae if isinstance(sae, Mapping) else {}
    parts = [" ".join(
        [str(sae.get("architecture", "")), *(f"{k}={sae[k]:g}" for k in ("l1", "k") if k in sae)]
    ).strip()]  # fmt: skip
    parts.append(str(lm["name"]) if isinstance(lm, Mapping) and "name" in lm else "")
    if "site" in config and "layer" in config:
        parts.append(f"{config['site']}.{config['layer']}")
    return " · ".join(part for part in parts if part)


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


def _tiles(results: dict[str, Any], curves: Mapping[str, Any]) -> list[dict[str, str]]:
    """The four numbers to look at first, from the test split or the last validation."""
    tiles = []
    for label, evaluation, name, curve in (
        ("FVU", "core", "fvu", "val/fvu"),
        ("L0", "core", "l0", "val/l0"),
        ("CE recovered", "downstream", "ce_recovered_zero", "val/ce_recovered_zero"),
        ("Dead", "training", "dead", "train/dead"),
    ):
        found = metric(results, evaluation, name)
        training = results.get("training")
        if name == "dead" and isinstance(training, Mapping):
            found = {"value": training.get("dead")}
        if found.get("value") is not None:
            tiles.append({"label": label, "value": format_number(name, found["value"]),
                          "note": _interval(name, found) or "at the end of training"})  # fmt: skip
        elif curve in curves:
            last = curves[curve][1][-1]
            note = "latest value"
            tiles.append({"label": label, "value": format_number(name, last), "note": note})
    return tiles


def _panels(results: Mapping[str, Any], curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    panels = []
    for title, note, keys, log in _PANELS:
        present = {label: curves[key] for label, key in keys.items() if key in curves}
        if present:
            svg = curves_figure(title, present, log=log)
            panels.append({"title": title, "note": note, "svg": svg})
    histogram = _histogram(results)
    if histogram is not None:
        panels.append({"title": "Firing", "note": "latents by how often", "svg": histogram})
    return panels


def _histogram(results: Mapping[str, Any]) -> Markup | None:
    for part in (results.get("core"), results.get("training")):
        part = part if isinstance(part, Mapping) else {}
        details = part.get("details", part)
        found = details.get("firing_histogram") if isinstance(details, Mapping) else None
        if isinstance(found, Mapping) and {"log10_edges", "latents", "silent"} <= found.keys():
            return histogram_figure(
                "How often latents fire", found["log10_edges"], found["latents"], found["silent"]
            )
    return None


def _tables(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    for name, result in results.items():
        if not isinstance(result, Mapping) or not isinstance(result.get("metrics"), Mapping):
            continue
        rows = [
            {
                "name": _LABELS.get(key, key.replace("_", " ").capitalize()),
                "value": format_number(key, found.get("value")),
                "interval": _interval(key, found),
            }
            for key, found in result["metrics"].items()
            if isinstance(found, Mapping)
        ]
        counts = [f"{count:,} {unit}" for unit, count in result.get("tokens", {}).items()]
        tables.append({"name": name, "rows": rows, "counted_on": ", ".join(counts)})
    return tables


def _training(training: object) -> list[dict[str, str]]:
    if not isinstance(training, Mapping):
        return []
    return [
        {"name": key.replace("_", " ").capitalize(), "value": format_number(key, value)}
        for key, value in training.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _interval(name: str, found: Mapping[str, Any]) -> str:
    low, high = found.get("low"), found.get("high")
    if low is None or high is None:
        return ""
    return f"{format_number(name, low)} – {format_number(name, high)}"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template("report.html")
