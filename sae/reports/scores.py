"""Names of scores of explanations, and what pages about them have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.explanations.study import SCORERS
from sae.explanations.summary import SAE
from sae.reports.falsified import FALSIFIED_WORDS
from sae.reports.judged import JUDGE_WORDS
from sae.reports.page import Cell, Table, interval, number
from sae.reports.pushed import PUSHED_WORDS

WORDS = {
    "rules": "F1 of the rule",
    "embedding": "AUROC, ±16 tokens",
    "embedding_near": "AUROC, ±3 tokens",
    "intruder": "Intruder found, ±16 tokens",
    "intruder_near": "Intruder found, ±3 tokens",
    "example": "Examples alike, ±16 tokens",
    "example_near": "Examples alike, ±3 tokens",
    **JUDGE_WORDS,
    "surprisal": "AUROC of surprisal",
    "simulation": "Simulation, top and random",
    "simulation_top": "Simulation, top",
    "simulation_random": "Simulation, random",
    **FALSIFIED_WORDS,
    **PUSHED_WORDS,
}
HEADLINE = "rules"
"""Explainer of pictures and tiles."""


def explained_by_rules(
    rows: Sequence[Mapping[str, Any]], qualified: Mapping[str, Sequence[str]]
) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of tiles and pictures by scorer: of rules, or without explanation; scorers that qualify.

    A scorer has none where no rule was scored: the tables tell about other explainers.
    """
    own = [row for row in rows if row["explainer"] in ("", HEADLINE)]
    found = {name: [row for row in own if row["scorer"] == name]
             for name in SCORERS if qualified[name]}  # fmt: skip
    return {name: part for name, part in found.items() if part}


def error_bar(high: float | None, low: float | None) -> float:
    """Length of one side of an error bar; 0 without an interval."""
    return 0.0 if high is None or low is None else max(0.0, high - low)


def correlation_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Table:
    """Pearson's r of scores and moments over the SAE's latents, as Table 2 of the paper.

    Args:
        rows: Rows of the table `correlations` whose scorers qualified.
        columns: Further columns of these rows, which come first.
    """
    shown = [
        [*(Cell(row[name]) for name in columns), Cell(WORDS[row["scorer"]]),
         Cell(row["explainer"] or "none"), Cell(row["of"]), number("", row["value"]),
         Cell(interval("", row["low"], row["high"])), Cell(str(row["latents"]), row["latents"])]
        for row in rows
        if row["subject"] == SAE and row["explainer"] in ("", HEADLINE)
    ]  # fmt: skip
    heads = [*columns, "scorer", "explainer", "moment", "correlation", "interval", "latents"]
    note = "over the SAE's latents; skew E[c³] / var^1.5, kurtosis E[c⁴] / var², training text"
    return Table("Correlation", heads, shown, note, words=3 + len(columns))
