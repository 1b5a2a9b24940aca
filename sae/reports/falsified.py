"""Sections of the page of `autointerp` about rules that changed texts tested."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.evals.base import EvalResult
from sae.explanations.falsified import PARTS
from sae.explanations.tested import TESTED
from sae.reports.page import Cell, Section, Table, interval, number

FALSIFIED_WORDS = {"necessity": "Necessity of the rule", "sensitivity": "Sensitivity to the rule"}
_SCORES = {
    "rules": "F1 of the rule", "embedding": "AUROC, ±16 tokens", "embedding_near":
    "AUROC, ±3 tokens", **FALSIFIED_WORDS, "falsified": "Falsified",
}  # fmt: skip


def falsified(result: EvalResult) -> list[Section]:
    """Means of the tests, and what the round of tests has changed; none if nothing was tested.

    Args:
        result: Result of the evaluation `autointerp`.
    """
    tested = _tested(result.tables["falsified"].rows())
    changed = _round(result.tables["round"].rows(), result.details["round"])
    tables = [*tested, *changed]
    return [Section("Rules put to the test", tables=tables)] if tables else []


def _tested(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not rows:
        return []
    columns = ["dictionary", "explainer", "necessity", "silent then", "another token of the rule",
               "another token near", "sensitivity", "random token", "another latent's explanation",
               "falsified", "rules"]  # fmt: skip
    shown = [
        [Cell(row["subject"]), Cell(row["explainer"]), *(number("", row[name]) for name in PARTS),
         Cell(str(row["rules"]), row["rules"])]
        for row in rows
    ]  # fmt: skip
    note = (
        "one token of the text is changed. Necessity: share of the activation that is lost when "
        "the rule is made false; sensitivity: share of silent places that fire when it is made "
        "true. Falsified: one of them is not above its control (another token near, random token)"
    )
    return [Table("Tests on changed text", columns, shown, note, words=2)]


def _round(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int] | None) -> list[Table]:
    if counts is None:
        return []
    shown = [
        [Cell(_SCORES[row["score"]]), number("", row["rules"]), number("", row[TESTED]),
         number("", row["difference"]), Cell(interval("", row["low"], row["high"])),
         Cell(str(row["latents"]), row["latents"])]
        for row in rows
    ]  # fmt: skip
    columns = ["score on the test text", "largest F1", "after the tests", "difference",
               "interval", "latents"]  # fmt: skip
    note = (
        f"the SAE; tests on changed training text gave {counts['changed']} of {counts['latents']} "
        "latents another rule than that of largest F1; means over these"
    )
    return [Table("What the tests changed", columns, shown, note)]
