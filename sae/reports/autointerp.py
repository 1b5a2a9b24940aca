"""`index.html` of the evaluation `autointerp`: explanations, and scores beside their controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.evals.base import EvalResult
from sae.explanations.files import write_explanations
from sae.explanations.study import SCORERS, UNEXPLAINED
from sae.explanations.summary import LEAST_COVERAGE, SAE, TOKENS
from sae.reports.explained import own_latents
from sae.reports.falsified import falsified
from sae.reports.files import write_bytes
from sae.reports.judged import judged, read_by_lm
from sae.reports.page import Cell, Plot, Section, Table, interval, number, plain, render
from sae.reports.pushed import pushed
from sae.reports.scores import (
    HEADLINE,
    WORDS,
    correlation_table,
    error_bar,
    explained_by_rules,
)

_AGAINST = {**dict.fromkeys(UNEXPLAINED, "chance"), "necessity": "another token near"}
"""Controls of scores that have no score of another latent's explanation."""


def write_autointerp(result: EvalResult, folder: Path) -> None:
    """Write the page and, for each explainer, a file of the SAE's explanations.

    Args:
        result: Result of the evaluation `autointerp`.
        folder: Folder to write `index.html` to.
    """
    details = result.details
    rows = result.tables["subjects"].rows()
    latents = own_latents(result.tables["latents"].rows())
    qualified = details["qualified"]
    shown = explained_by_rules(rows, qualified)
    sections = [
        Section(
            "The SAE beside its controls",
            plots=[_dots(name, own, rows) for name, own in shown.items()],
        ),
        Section("Do the scores mean something?", tables=[_qualification(result)]),
        Section("Judged by a chat LM", tables=judged(result, latents)),
        *falsified(result),
        *pushed(result),
        *read_by_lm(details["narrow"]),
        Section("Where the SAE does not win", tables=[_not_won(rows, qualified)]),
        Section("By decile of the activation", plots=_by_decile(result, qualified)),
        Section("By density", tables=[_by_density(result)]),
        Section(
            "Scores and moments of the activation",
            tables=[correlation_table(
                [r for r in result.tables["correlations"].rows() if qualified[r["scorer"]]]
            )],
        ),
        Section("All means", tables=[_means(rows)]),
        Section("Latents of the SAE", tables=[_latents(latents, folder)]),
        Section("Some latents and their strongest test contexts", latents=details["shown"]),
        Section("States of latents", tables=[_states(details["states"])]),
        Section("Controls that were not given", texts=details["missing"]),
    ]  # fmt: skip
    tokens = result.tokens
    level = result.settings["bootstrap"]["level"]
    subtitle = (
        f"{tokens['latents']:,} latents of each dictionary · explained on "
        f"{tokens['training tokens']:,} training tokens, scored on {tokens['test tokens']:,} test "
        f"tokens · {100 * level:g} % intervals over latents"
        + (f" · the SAE in {details['seeds']} seeds" if details["seeds"] > 1 else "")
    )
    folder.mkdir(parents=True, exist_ok=True)
    tiles = [_tile(result, own, name) for name, own in shown.items()]
    title = f"Explanations of latents · {result.provenance['point']}"
    write_bytes(folder / "index.html", render(title, subtitle, sections, tiles))
    for explainer in dict.fromkeys(row["explainer"] for row in latents):
        own = {row["latent"]: row["explanation"] for row in latents
               if row["explainer"] == explainer and row["explanation"]}  # fmt: skip
        write_explanations(folder / f"explanations-{explainer}.csv", own)


def _dots(scorer: str, own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Plot:
    """Means of all dictionaries with their intervals, as in Figure 2 of the paper."""
    control = [row for row in rows if row["scorer"] == scorer and row["explainer"] == TOKENS]
    traces = []
    for label, part, symbol in (
        ("explained by a rule" if scorer not in UNEXPLAINED else "without explanation", own,
         "circle"),
        ("explained by one token (control)", control, "diamond-open"),
    ):  # fmt: skip
        if part:
            traces.append({
                "type": "scatter", "mode": "markers", "name": label,
                "x": [row["value"] for row in part], "y": [plain(row["subject"]) for row in part],
                "marker": {"size": 9, "symbol": symbol},
                "error_x": {
                    "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
                    "array": [error_bar(row["high"], row["value"]) for row in part],
                    "arrayminus": [error_bar(row["value"], row["low"]) for row in part],
                },
            })  # fmt: skip
    wrong = [row for row in own if row["deranged"] is not None]
    traces.append({
        "type": "scatter", "mode": "markers",
        "name": _AGAINST.get(scorer, "another latent's explanation"),
        "x": [row["deranged"] for row in wrong], "y": [plain(row["subject"]) for row in wrong],
        "marker": {"size": 8, "symbol": "x-thin-open"},
    })  # fmt: skip
    always = [row for row in own if row["always"] is not None]
    if always:
        traces.append({
            "type": "scatter", "mode": "markers", "name": "the rule that always says yes",
            "x": [row["always"] for row in always],
            "y": [plain(row["subject"]) for row in always],
            "marker": {"size": 8, "symbol": "line-ns-open"},
        })  # fmt: skip
    layout = {
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "showlegend": True,
    }
    return Plot(WORDS[scorer], "means over latents, at each dictionary's own densities", traces,
                layout, wide=True)  # fmt: skip


def _qualification(result: EvalResult) -> Table:
    rows = [
        [Cell(row["kind"]), Cell(WORDS[row["scorer"]]),
         Cell("qualified" if row["qualified"] else "not qualified"),
         number("", row["oracle"]), number("", row["wrong"]), number("", row["difference"]),
         Cell(interval("", row["difference_low"], row["difference_high"])),
         Cell(str(row["classes"]), row["classes"])]
        for row in result.tables["qualification"].rows()
    ]  # fmt: skip
    columns = ["classes", "scorer", "outcome", "own explanation", "another class's", "difference",
               "interval", "number of classes"]  # fmt: skip
    note = (
        "classes whose meaning is known; in place of another class's explanation, scores without "
        "explanation stand beside random sets of excerpts, necessity beside another token near. A "
        "scorer that qualifies on neither kind is left out of tiles and picture"
    )
    return Table("Qualification", columns, rows, note, words=3)


def _not_won(rows: Sequence[Mapping[str, Any]], qualified: Mapping[str, Any]) -> Table:
    found = []
    for row in rows:
        compared = row["subject"] != SAE and row["explainer"] in ("", HEADLINE)
        low, high = row["sae_less_this_low"], row["sae_less_this_high"]
        unknown = row["sae_less_this"] is None or (low or 0) > 0
        if not compared or not qualified[row["scorer"]] or unknown:
            continue
        ahead = high is not None and high < 0
        apart = row["coverage"] < LEAST_COVERAGE
        found.append([
            Cell(WORDS[row["scorer"]]), Cell(row["subject"]),
            Cell("too few latents in common" if apart else
                 "too few latents for an interval" if low is None else
                 "the control is ahead" if ahead else "no difference seen"),
            number("", row["sae_less_this"]),
            Cell(interval("", low, high)), number("", row["coverage"]),
        ])  # fmt: skip
    for row in rows:
        rule = row["subject"] == SAE and row["explainer"] == HEADLINE and qualified[row["scorer"]]
        if rule and row["over_tokens_low"] is not None and row["over_tokens_low"] <= 0:
            ahead = row["over_tokens_high"] < 0
            found.append([
                Cell(WORDS[row["scorer"]]), Cell("SAE, explained by one token"),
                Cell("the control is ahead" if ahead else "no difference seen"),
                number("", row["over_tokens"]),
                Cell(interval("", row["over_tokens_low"], row["over_tokens_high"])),
                number("", 1.0),
            ])  # fmt: skip
    columns = ["scorer", "control", "outcome", "SAE less control", "interval", "latents covered"]
    note = "at equal densities: in the bins that both fill, weighted by the SAE's latents"
    return Table("Comparisons", columns, found, note, words=3)


def _by_decile(result: EvalResult, qualified: Mapping[str, Any]) -> list[Plot]:
    rows = [row for row in result.tables["deciles"].rows() if row["explainer"] == HEADLINE]
    plots = []
    for scorer in (name for name in SCORERS if name != "rules" and qualified[name]):
        traces = []
        for subject in dict.fromkeys(row["subject"] for row in rows):
            own = [row for row in rows if row["subject"] == subject]
            if any(row[scorer] is None for row in own):
                continue
            traces.append({
                "type": "scatter", "mode": "lines+markers", "name": plain(subject),
                "x": [row["decile"] for row in own], "y": [row[scorer] for row in own],
                "line": {"width": 3 if subject == SAE else 1.2},
            })  # fmt: skip
        if not traces:
            continue
        layout = {"xaxis": {"title": {"text": "decile, 1 the strongest"}, "dtick": 1,
                            "showgrid": False}}  # fmt: skip
        plots.append(Plot(WORDS[scorer], "means over latents", traces, layout))
    return plots


def _by_density(result: EvalResult) -> Table:
    found = [r for r in result.tables["densities"].rows() if r["explainer"] == HEADLINE]
    names = _measured(found)
    rows = [
        [Cell(row["subject"]), number("", row["density"]), Cell(str(row["latents"]),
         row["latents"]), *(number("", row[name]) for name in names)]
        for row in found
    ]  # fmt: skip
    columns = ["dictionary", "density from", "latents", *(WORDS[name] for name in names)]
    return Table("Explained by rules", columns, rows, "four bins a decade")


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Scorers with a number in some row."""
    return [name for name in SCORERS if any(row[name] is not None for row in rows)]


def _means(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = [
        [Cell(row["subject"]), Cell(row["explainer"] or "none"), Cell(WORDS[row["scorer"]]),
         number("", row["value"]), Cell(interval("", row["low"], row["high"])),
         Cell(interval("", row["seed_low"], row["seed_high"])),
         number("", row["deranged"]), number("", row["always"]), number("", row["hard"]),
         number("", row["sae_less_this"]),
         Cell(interval("", row["sae_less_this_low"], row["sae_less_this_high"])),
         Cell(interval("", row["sae_less_this_seed_low"], row["sae_less_this_seed_high"])),
         number("", row["coverage"]), Cell(str(row["latents"]), row["latents"])]
        for row in rows
    ]  # fmt: skip
    columns = ["dictionary", "explainer", "scorer", "mean", "interval", "over seeds",
               "another latent's explanation", "always yes", "hard negatives", "SAE less this",
               "its interval", "its interval over seeds", "covered", "latents"]  # fmt: skip
    note = (
        "in place of another latent's explanation, scores without explanation stand beside chance, "
        "and necessity beside another token near; hard: co-firing latents fire"
    )
    return Table("Means over latents", columns, shown, note, words=3)


def _latents(rows: Sequence[Mapping[str, Any]], folder: Path) -> Table:
    there = (folder.parent / "dashboard" / "index.html").exists()
    names = _measured(rows)
    shown = [
        [Cell(row["latent"], int(row["latent"]),
              f"../dashboard/index.html#/latent/{row['latent']}" if there else ""),
         Cell(row["explainer"]), Cell(row["explanation"]), Cell(row["state"]),
         *(number("", row[name]) for name in ("density", "precision", "recall", *names))]
        for row in rows
    ]  # fmt: skip
    columns = ["latent", "explainer", "explanation", "state", "density", "precision", "recall",
               *(WORDS[name] for name in names)]  # fmt: skip
    return Table("Latents", columns, shown, "chosen blindly from bins of density", words=4)


def _states(states: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Table:
    seen = {name for own in states.values() for of in own.values() for name in of}
    asked = [name for name in ("not given", "unparsed", "refused", "unasked") if name in seen]
    names = ("explained", "too rare", "failed", *asked)
    rows = [
        [Cell(subject), Cell(explainer), *(Cell(str(of.get(n, 0)), of.get(n, 0)) for n in names)]
        for subject, own in states.items()
        for explainer, of in own.items()
    ]
    note = "too rare: it fires in fewer than 20 contexts of the training or of the test text"
    return Table("States", ["dictionary", "explainer", *names], rows, note, words=2)


def _tile(result: EvalResult, rows: Sequence[Mapping[str, Any]], scorer: str) -> dict[str, str]:
    row = next((one for one in rows if one["subject"] == SAE), None)
    value = None if row is None else row["value"]
    chance = None if row is None else row["deranged"]
    kinds = " and ".join(result.details["qualified"][scorer])
    against = _AGAINST.get(scorer, "another latent's explanation")
    note = f"{against} {number('', chance).text} · qualified on {kinds}"
    return {"label": WORDS[scorer], "value": number("", value).text, "note": note}
