"""Section of the page of `autointerp` about what an LM writes while latents are pushed."""

from collections.abc import Mapping
from typing import Any

from sae.evals.base import EvalResult
from sae.explanations.pushed import TARGET
from sae.reports.page import Cell, Section, Table, interval, number

PUSHED_WORDS = {"intervention": "Rise under a push, nats"}
_AGAINST = {"over_random": "a random direction", "over_deranged": "another latent's explanation"}


def pushed(result: EvalResult) -> list[Section]:
    """Means of the rises, with their controls; none if nothing was pushed.

    Args:
        result: Result of the evaluation `autointerp`.
    """
    rows = result.tables["pushed"].rows()
    if not rows:
        return []
    columns = ["dictionary", "explainer", "rise", "interval"]
    for control in _AGAINST.values():
        columns += [f"less {control}", "interval", "over seeds"]
    shown = [
        [Cell(row["subject"]), Cell(row["explainer"]), *_interval(row, "rise"),
         *(cell for name in _AGAINST for cell in (
             *_interval(row, name),
             Cell(interval("", row[f"{name}_seed_low"], row[f"{name}_seed_high"])),
         )),
         Cell(str(row["latents"]), row["latents"])]
        for row in rows
    ]  # fmt: skip
    note = (
        "log-probability of the explanation behind text that was written while the latent was "
        f"pushed, less that behind clean text, in nats; all pushes have a mean KL of {TARGET:g} "
        "nat. Means over latents at each dictionary's own densities; intervals need 10"
    )
    tables = [Table("Pushed latents", [*columns, "latents"], shown, note, words=2)]
    compared = [
        [Cell(row["subject"]), Cell(row["explainer"]),
         *(cell for name in _AGAINST for cell in _interval(row, f"sae_less_this_{name}"))]
        for row in rows if row["sae_less_this_over_random"] is not None
    ]  # fmt: skip
    if compared:
        columns = ["dictionary", "explainer"]
        for control in _AGAINST.values():
            columns += [f"rise less {control}: SAE less this", "interval"]
        note = "the latents of both are drawn again; how often they fire is not matched"
        tables.append(Table("The SAE less other dictionaries", columns, compared, note, words=2))
    return [Section("What the LM writes under a push", tables=tables)]


def _interval(row: Mapping[str, Any], name: str) -> list[Cell]:
    """A number and its interval."""
    return [number("", row[name]), Cell(interval("", row[f"{name}_low"], row[f"{name}_high"]))]
