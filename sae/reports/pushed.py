"""Section of the page of `autointerp` about what an LM writes while latents are pushed."""

from sae.evals.base import EvalResult
from sae.explanations.pushed import TARGET
from sae.reports.page import Cell, Section, Table, interval, number

PUSHED_WORDS = {"intervention": "Rise under a push, nats"}


def pushed(result: EvalResult) -> list[Section]:
    """Means of the rises, with their controls; none if nothing was pushed.

    Args:
        result: Result of the evaluation `autointerp`.
    """
    rows = [
        [Cell(row["subject"]), Cell(row["explainer"]), number("", row["rise"]),
         Cell(interval("", row["rise_low"], row["rise_high"])), number("", row["random"]),
         number("", row["over_random"]),
         Cell(interval("", row["over_random_low"], row["over_random_high"])),
         number("", row["deranged"]), number("", row["over_deranged"]),
         Cell(interval("", row["over_deranged_low"], row["over_deranged_high"])),
         Cell(str(row["latents"]), row["latents"])]
        for row in result.tables["pushed"].rows()
    ]  # fmt: skip
    if not rows:
        return []
    columns = ["dictionary", "explainer", "rise", "interval", "random direction", "difference",
               "interval", "another latent's", "difference", "interval", "latents"]  # fmt: skip
    note = (
        "log-probability of the explanation behind text that was written while the latent was "
        f"pushed, less that behind clean text, in nats; all pushes have a mean KL of {TARGET:g} nat"
    )
    table = Table("Pushed latents", columns, rows, note, words=2)
    return [Section("What the LM writes under a push", tables=[table])]
