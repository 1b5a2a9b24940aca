"""Parts of the page of `autointerp` about scores by LMs."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.evals.base import EvalResult
from sae.explanations.judges import JUDGES
from sae.explanations.saebench import FLOOR
from sae.reports.page import Cell, Section, Table, interval, number

JUDGE_WORDS = {"detection": "Detection", "fuzzing": "Fuzzing"}


def judged(result: EvalResult, latents: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Means by judge, number of requests, and scores of each latent; none without a chat LM.

    Args:
        result: Result of the evaluation `autointerp`.
        latents: Rows of the SAE's latents.
    """
    chat = result.details.get("chat")
    if chat is None:
        return []
    qualified = result.details["qualified"]
    means = [
        [Cell(row["subject"]), Cell(row["explainer"]), Cell(JUDGE_WORDS[row["scorer"]]),
         Cell(" and ".join(qualified[row["scorer"]]) or "not qualified"),
         number("", row["value"]), Cell(interval("", row["low"], row["high"])),
         number("", row["deranged"]),
         Cell(interval("", row["over_deranged_low"], row["over_deranged_high"])),
         Cell(interval("", row["over_tokens_low"], row["over_tokens_high"])),
         number("", row["always"]), Cell(str(row["latents"]), row["latents"])]
        for row in result.tables["subjects"].rows() if row["scorer"] in JUDGES
    ]  # fmt: skip
    columns = ["dictionary", "explainer", "scorer", "qualified on", "mean", "interval",
               "another latent's explanation", "own less another's", "own less one token",
               "always yes", "latents"]  # fmt: skip
    note = "balanced accuracy over latents with 10 or more; chance .5"
    names = {
        "asked": "requests sent", "from_ledger": "replies out of the ledger",
        "prompt_tokens": "prompt tokens", "reply_tokens": "reply tokens",
        "unparsed": "replies without verdicts", "failed": "failed", "unasked": "not asked",
    }  # fmt: skip
    counts = [[Cell(words), number("", chat[name])] for name, words in names.items()]
    each = [
        [Cell(row["latent"], int(row["latent"])), Cell(row["explainer"]), Cell(row["explanation"]),
         *(number("", row[name + part]) for name in JUDGES for part in ("", "_deranged",
                                                                      "_unparsed"))]
        for row in latents if any(row[name] is not None for name in JUDGES)
    ]  # fmt: skip
    parts = ("", ", another's", ", unparsed")
    heads = [f"{JUDGE_WORDS[name]}{part}" for name in JUDGES for part in parts]
    asked = f"{chat['model']} · {chat['base_url']}"
    return [
        Table("Means of the judges", columns, means, note, words=4),
        Table("Requests", ["", "number"], counts, asked),
        Table("Judged latents", ["latent", "explainer", "explanation", *heads], each, words=3),
        *_studied(result),
    ]


def _studied(result: EvalResult) -> list[Table]:
    """SAEBench's score of latents, if it was asked for."""
    if "saebench" not in result.tables:
        return []
    rows = [
        [Cell(row["latent"], int(row["latent"])), Cell(row["explanation"] or ""),
         Cell(row["state"]),
         *(number("", row[name]) for name in ("score", "balanced", "random_that_fire"))]
        for row in result.tables["saebench"].rows()
    ]  # fmt: skip
    columns = ["latent", "explanation", "state", "score", "balanced accuracy",
               "random windows that fire"]  # fmt: skip
    note = f"share of 14 windows that are told right; naming none gives {FLOOR:.3f}"
    return [Table("SAEBench's score", columns, rows, note, words=3)]


def read_by_lm(facts: Mapping[str, Any] | None) -> list[Section]:
    """Section on what the LM under study has read for scores; none if it was not asked.

    Args:
        facts: As `Narrow.facts` gives them.
    """
    if facts is None:
        return []
    columns = ["scorer", "latents of each dictionary, at most", "unasked"]
    rows = [
        [Cell(name), Cell(f"{count:,}", count),
         Cell(", ".join(f"{of}: {n:,}" for of, n in facts["unasked"].get(name, {}).items()) or "0")]
        for name, count in facts["latents"].items()
    ]  # fmt: skip
    if tested := facts.get("tested"):
        rows.append([Cell("the explainer tested, of the SAE"), number("", tested), Cell("")])
    note = (
        f"the LM under study read and wrote {facts['tokens']:,} tokens of a budget of "
        f"{facts['budget']:,}: all explanations of the SAE, those of the first explainer of the "
        "others. Unasked: latents that were left when the budget was spent"
    )
    if (server := facts.get("server")) is not None:
        note += (
            f". For surprisal and simulation {server['model']} at {server['base_url']} read in its "
            "place; its tokens are counted with the chat LM's"
        )
    if "scale" in facts:
        note += (
            f". Simulated activations go from 0 to {facts['scale']}; "
            f"{facts['constant simulations']} simulations were constant and count as 0"
        )
    return [Section("Scores by the LM", tables=[Table("What it read", columns, rows, note)])]
