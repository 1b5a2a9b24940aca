"""`index.html` and `features.json` of the evaluation `ioi`: sets of latents and what they do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.evals.base import EvalResult
from sae.features.sets import FeatureSet
from sae.reports.files import write_bytes
from sae.reports.page import Cell, Plot, Section, Table, interval, number, plain, render

_SIZE = {"type": "log", "title": {"text": "patched latents"}}
_KL = {"rangemode": "tozero", "title": {"text": "KL(target || run), nats"}}
_KL_PAPER = {"rangemode": "tozero", "title": {"text": "KL(run || target), nats"}}
_NUMBERS = {
    "latents": "latents that change", "kl_empty": "KL, none patched", "kl_all": "KL, all patched",
    "kl_everything": "KL, error too", "half_attribution": "for half, by attribution",
    "half_gradients": "… by integrated gradients", "half_active": "… by activity",
    "half_random": "… at random", "faithful_95": "for 95 % of the difference",
}  # fmt: skip


def write_ioi(result: EvalResult, folder: Path) -> None:
    """Write the page, and the latents of the smallest set by attribution that halves the KL.

    Where none does, `features.json` holds the strongest, and says so.

    Args:
        result: Result of the evaluation `ioi`.
        folder: Folder to write `index.html` and `features.json` to.
    """
    rows = result.tables["sets"].rows()
    own = [row for row in rows if row["decomposition"] == "SAE"]
    by_attribution = [row for row in rows if row["method"] == "attribution"]
    limits = [(row["kl"], row["method"]) for row in own if row["method"] in _ENDS]
    sections = [
        Section(
            "How few latents carry the answer",
            plots=[
                Plot("The SAE", "KL on prompts that did not choose the latents",
                     _lines(own, "method", "size", "kl"), _layout(limits), wide=True),
                Plot("Beside other decompositions", "latents in the order of their attribution",
                     _lines(by_attribution, "decomposition", "size", "kl"), _layout([]), wide=True),
                Plot("By size of the edit", "mean length over the positions of a prompt",
                     _lines(by_attribution, "decomposition", "edit", "kl"),
                     {"xaxis": {"title": {"text": "edit, in the LM's units"}}, "yaxis": _KL,
                      "showlegend": True}, wide=True),
                Plot("The other KL", "as arXiv 2309.08600 has it, by attribution",
                     _lines(by_attribution, "decomposition", "size", "kl_paper"),
                     {**_layout([]), "yaxis": _KL_PAPER}, wide=True),
                Plot("Faithfulness", "share of what patching latents and error does",
                     _lines(own, "method", "size", "faithfulness"),
                     {"xaxis": _SIZE, "yaxis": {"title": {"text": "faithfulness"}},
                      "showlegend": True}, wide=True),
            ],
        ),
        Section("Decompositions", tables=[_decompositions(result)]),
        Section("Learned masks", tables=[_masks(own, result.settings["penalties"])]),
        Section("Latents of largest attribution", tables=[_latents(result, folder)]),
        Section("Controls that were not given", texts=result.details["missing"]),
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    FeatureSet(**result.details["features"]).save(folder / "features.json")
    settings, tokens, accuracy = result.settings, result.tokens, result.details["accuracy"]
    task = settings["task"]
    if task == "ioi":
        task += f", counterfactual {settings['counterfactual']}"
    subtitle = (
        f"{task} · latents chosen on {tokens['chosen on']} prompts, measured on "
        f"{tokens['measured on']} others · the LM is right in {accuracy['measures']:.0%} · "
        f"{100 * settings['bootstrap']['level']:g} % intervals over prompts"
    )
    page = render(
        f"What decides the answer · {result.provenance['point']}",
        subtitle,
        sections,
        _tiles(result),
    )
    write_bytes(folder / "index.html", page)


_ENDS = ("none", "all latents")


def _lines(rows: Sequence[Mapping[str, Any]], by: str, x: str, y: str) -> list[dict[str, Any]]:
    """A line for each value of a column; several draws become their mean."""
    traces = []
    for name in dict.fromkeys(row[by] for row in rows):
        if name in _ENDS:
            continue
        points: dict[float, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row[by] == name and row[y] is not None:
                points.setdefault(row[x], []).append(row)
        sizes = sorted(points)
        trace: dict[str, Any] = {
            "type": "scatter", "name": plain(name), "x": sizes,
            "mode": "markers" if name in ("learned mask", "greedy") else "lines+markers",
            "y": [sum(row[y] for row in points[size]) / len(points[size]) for size in sizes],
        }  # fmt: skip
        if name in ("SAE", "attribution"):
            trace["line"] = {"width": 3}
        traces.append(trace)
    return traces


def _layout(limits: Sequence[tuple[float, str]]) -> dict[str, Any]:
    lines = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": kl, "y1": kl,
         "line": {"dash": "dot", "width": 1}}
        for kl, _ in limits
    ]  # fmt: skip
    words = [
        {"xref": "paper", "x": 1, "xanchor": "right", "y": kl, "yanchor": "bottom",
         "text": f"{name} patched", "showarrow": False}
        for kl, name in limits
    ]  # fmt: skip
    return {"xaxis": _SIZE, "yaxis": _KL, "showlegend": True, "shapes": lines, "annotations": words}


def _decompositions(result: EvalResult) -> Table:
    rows = [
        [Cell(row["decomposition"]), *(number("", row[name]) for name in _NUMBERS)]
        for row in result.tables["decompositions"].rows()
    ]
    note = (
        "± : the signs of a code are two latents. For half: the smallest set after which half of "
        "the KL is left; – where no set reaches it"
    )
    return Table("The SAE and its controls", ["decomposition", *_NUMBERS.values()], rows, note)


def _masks(own: Sequence[Mapping[str, Any]], penalties: Sequence[float]) -> Table:
    rows = [
        [number("", penalties[row["draw"]]), number("", row["size"]), number("", row["kl"]),
         Cell(interval("", row["kl_low"], row["kl_high"])), number("", row["faithfulness"]),
         Cell(interval("", row["faithfulness_low"], row["faithfulness_high"])),
         number("", row["completeness"])]
        for row in own if row["method"] == "learned mask"
    ]  # fmt: skip
    columns = ["penalty", "latents", "KL", "interval", "faithfulness", "interval", "completeness"]
    note = "completeness is the faithfulness of all other latents: low is good"
    return Table("On the other half of the prompts", columns, rows, note)


def _latents(result: EvalResult, folder: Path) -> Table:
    there = (folder.parent / "dashboard" / "index.html").exists()
    rows = [
        [
            Cell(
                str(row["latent"]), row["latent"],
                f"../dashboard/index.html#/latent/{row['latent']}" if there else "",
            ),
            *(number("", row[name])
              for name in ("attribution", "integrated_gradients", "exact", "change", "masks")),
        ]
        for row in result.tables["latents"].rows()
    ]  # fmt: skip
    columns = ["latent", "attribution", "integrated gradients", "patched alone", "change of code",
               "in masks"]  # fmt: skip
    note = (
        "estimated and exact change of the logit difference, mean over the prompts that choose. "
        f"Rank correlation of attribution and exact: {_text(result, 'spearman')}"
    )
    if not there:
        note += ". python evaluate.py run=… 'eval=[dashboard]' makes a page of each latent"
    return Table("Latents", columns, rows, note)


def _text(result: EvalResult, name: str) -> str:
    return number("", result.metrics[name].value).text


def _tiles(result: EvalResult) -> list[dict[str, str]]:
    words = {
        "half_attribution": ("Latents for half of the KL", "by attribution, on other prompts"),
        "kl_empty": ("KL, none patched", "nats from the counterfactual's predictions"),
        "kl_all": ("KL, all patched", "what the SAE's error holds back"),
        "faithful_95": ("Latents for 95 %", "of the change of the logit difference"),
    }
    return [
        {"label": label, "value": _text(result, name), "note": note}
        for name, (label, note) in words.items()
    ]
