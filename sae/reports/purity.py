"""`index.html` of the evaluation `purity`: the SAE beside its controls, at equal firing counts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.evals.base import EvalResult
from sae.evals.purity import HEADLINE, LEAST_COVERAGE
from sae.reports.files import write_bytes
from sae.reports.page import Cell, Plot, Section, Table, interval, number, plain, render
from sae.reports.purity_sets import set_section
from sae.reports.results import newest_latents

_WORDS = {
    "token_entropy": "Token entropy, bits",
    "token_purity": "Token purity",
    "pos_entropy": "Entropy of the part of speech, bits",
    "pos_purity": "Purity of the part of speech",
    "pos_given_token": "Part of speech given the token",
    "pos_bits": "Part of speech given the token, bits a row",
    "pos_consistency": "Consistency of the part of speech",
    "entity_entropy": "Entropy of the named entity, bits",
    "entity_purity": "Purity of the named entity",
    "entity_given_token": "Named entity given the token",
    "entity_bits": "Named entity given the token, bits a row",
    "entity_consistency": "Consistency of the named entity",
}
_COLUMNS = {"purity": "pos_purity", "given the token": "pos_given_token", "part of speech": "pos"}
_LISTED = 25


def write_purity(result: EvalResult, folder: Path) -> None:
    """Write the page.

    Args:
        result: Result of the evaluation `purity`.
        folder: Folder to write `index.html` to.
    """
    compared = result.tables["compared"].rows()
    covered = [row for row in compared if (row["coverage"] or 0) >= LEAST_COVERAGE]
    details = result.details
    sections = [
        Section(
            "Beside controls, at equal firing counts",
            plots=[_dots(name, covered) for name in (HEADLINE, "pos_purity", "token_purity",
                                                      "entity_given_token")],
        ),
        Section("Where the SAE does not win", tables=[_not_won(covered)]),
        set_section(result, LEAST_COVERAGE),
        Section("By decile of the activation", plots=_by_decile(result)),
        Section("All numbers", tables=[_numbers(result), _differences(compared)]),
        Section("Latents that say most beyond the token", tables=[_latents(result)]),
        Section("Controls that were not given", texts=details["missing"]),
    ]  # fmt: skip
    tiles = [_tile(result, name) for name in (HEADLINE, "pos_purity", "token_purity")]
    tokens = result.tokens
    level = result.settings["bootstrap"]["level"]
    subtitle = (
        f"{tokens['latents']:,} latents on {tokens['vectors']:,} rows of test text, "
        f"{tokens['documents']:,} documents · {100 * level:g} % intervals over documents"
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = render(f"Purity of latents · {result.provenance['point']}", subtitle, sections, tiles)
    write_bytes(folder / "index.html", page)


def won(row: Mapping[str, Any]) -> bool | None:
    """Tell whether the SAE is ahead of a control beyond the interval; None: neither is.

    More is better for all numbers but entropies.
    """
    low, high = row["difference_low"], row["difference_high"]
    if low is None or low <= 0 <= high:
        return None
    return (low > 0) != row["number"].endswith("entropy")


def purity_columns(result: EvalResult, folder: Path) -> dict[str, dict[str, float | str]]:
    """Columns for the table of a dashboard, from the newest result `purity` of the same SAE.

    Args:
        result: Result of another evaluation of the SAE.
        folder: Folder that holds results.

    Returns:
        Values by heading and latent; empty without such a result.
    """
    _, rows = newest_latents("purity", result, folder)
    return {
        heading: {row["latent"]: row[name] for row in rows if row[name] is not None}
        for heading, name in _COLUMNS.items()
        if rows
    }


def _dots(name: str, compared: Sequence[Mapping[str, Any]]) -> Plot:
    """The SAE and each control over the same bins of density, one row a control."""
    rows = [row for row in compared if row["number"] == name]
    labels = [plain(row["control"]) for row in rows]
    traces = [
        {
            "type": "scatter", "mode": "markers", "name": label,
            "x": [row[key] for row in rows], "y": labels, "marker": {"size": 9, "symbol": symbol},
            "error_x": {
                "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
                "array": [_off(row[f"{key}_high"], row[key]) for row in rows],
                "arrayminus": [_off(row[key], row[f"{key}_low"]) for row in rows],
            },
        }
        for key, label, symbol in (
            ("sae", "SAE", "circle"), ("of_control", "control", "diamond-open"),
        )
    ]  # fmt: skip
    layout = {
        "xaxis": {"rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "showlegend": True,
    }
    return Plot(_WORDS[name], "the SAE over the same densities as each control", traces, layout,
                wide=True)  # fmt: skip


def _off(high: float | None, low: float | None) -> float:
    return 0.0 if high is None or low is None else max(0.0, high - low)


def _by_decile(result: EvalResult) -> list[Plot]:
    rows = result.tables["deciles"].rows()
    plots = []
    for name in ("pos_purity", "token_purity", "token_entropy", "pos_entropy"):
        traces = []
        for dictionary in dict.fromkeys(row["dictionary"] for row in rows):
            own = [row for row in rows if row["dictionary"] == dictionary]
            if any(row[name] is None for row in own):
                continue  # a token either fires or does not
            traces.append({
                "type": "scatter", "mode": "lines+markers", "name": plain(dictionary),
                "x": [row["decile"] for row in own], "y": [row[name] for row in own],
                "line": {"width": 3 if dictionary == "SAE" else 1.2},
            })  # fmt: skip
        layout = {
            "xaxis": {"title": {"text": "decile, 1 the strongest"}, "dtick": 1, "showgrid": False},
            "yaxis": {"rangemode": "tozero"},
        }
        note = "all latents of each dictionary, not matched"
        plots.append(Plot(_WORDS[name], note, traces, layout))
    return plots


def _not_won(compared: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for row in compared:
        if won(row):
            continue
        verdict = "the control is ahead" if won(row) is False else "no difference seen"
        rows.append([
            Cell(_WORDS[row["number"]]), Cell(row["control"]), Cell(verdict),
            number("", row["difference"]),
            Cell(interval("", row["difference_low"], row["difference_high"])),
        ])  # fmt: skip
    note = (
        "the SAE less the control; entropies: less is purer. Controls that share bins with less "
        f"than {100 * LEAST_COVERAGE:.0f} % of the SAE's latents are under All numbers alone"
    )
    columns = ["number", "control", "outcome", "difference", "interval"]
    return Table("Comparisons", columns, rows, note, words=3)


def _numbers(result: EvalResult) -> Table:
    chance = result.details["chance"]
    rows = [
        [Cell(words), number("", result.metrics[name].value),
         Cell(interval("", result.metrics[name].low, result.metrics[name].high)),
         number("", chance.get(name))]
        for name, words in _WORDS.items()
    ]  # fmt: skip
    columns = ["number", "mean of the SAE's latents", "interval", "a latent that always fires"]
    return Table("The SAE", columns, rows)


def _differences(compared: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [Cell(row["control"]), Cell(_WORDS[row["number"]]), number("", row["sae"]),
         number("", row["of_control"]), number("", row["difference"]),
         Cell(interval("", row["difference_low"], row["difference_high"])),
         Cell(interval("", row["seed_low"], row["seed_high"])),
         number("", row["coverage"])]
        for row in compared if row["coverage"] is not None
    ]  # fmt: skip
    columns = ["control", "number", "SAE", "control's", "difference", "over documents",
               "over seeds", "latents covered"]  # fmt: skip
    apart = dict.fromkeys(row["control"] for row in compared if row["coverage"] is None)
    note = "in the bins of density that both fill"
    if apart:
        note += "; no common bin: " + ", ".join(apart)
    return Table("The SAE and its controls", columns, rows, note, words=2)


def _latents(result: EvalResult) -> Table:
    latents = result.tables["latents"].rows()
    latents.sort(key=lambda row: -(row["pos_given_token"] or 0))
    columns = ["latent", "part of speech", "named entity", "density", "given the token",
               "purity of the part of speech", "token purity", "consistency"]  # fmt: skip
    rows = [
        [Cell(row["latent"], int(row["latent"])), Cell(row["pos"]), Cell(row["entity"]),
         *(number("", row[name]) for name in ("density", "pos_given_token", "pos_purity",
                                              "token_purity", "pos_consistency"))]
        for row in latents[:_LISTED]
    ]  # fmt: skip
    return Table("Latents", columns, rows, f"the first {_LISTED}; all in the table beside", words=3)


def _tile(result: EvalResult, name: str) -> dict[str, str]:
    estimate = result.metrics[name]
    note = interval("", estimate.low, estimate.high)
    if name in result.details["chance"]:
        note = f"of the whole text {number('', result.details['chance'][name]).text}"
    return {"label": _WORDS[name], "value": number("", estimate.value).text, "note": note}
