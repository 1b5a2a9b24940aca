"""The tables on the screen: of a run when it ends, and of an evaluation."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae.evals.base import EvalResult
from sae.language.pieces import visible

_LATENTS = 3


def print_summary(results: Mapping[str, Any], title: str) -> None:
    """Print the numbers that a run is judged by, with their intervals.

    Args:
        results: Content of `results.json`.
        title: Put above the table, for example the run folder.
    """
    core, downstream, recovery = (
        results.get(name, {}).get("metrics", {}) for name in ("core", "downstream", "recovery")
    )
    training = results["training"]
    table = Table("metric", "test split", "95 % interval", title=title)
    for label, group, name in (
        ("FVU", core, "fvu"),
        ("FVU, median over rows", core, "fvu_median"),
        ("FVU under 4 medians", core, "fvu_under_4_medians"),
        ("FVU over all rows", core, "fvu_all_rows"),
        ("variance in first direction", core, "first_direction"),
        ("rows left out", core, "left_out"),
        ("L0", core, "l0"),
        ("CE clean", downstream, "ce_clean"),
        ("CE spliced", downstream, "ce_sae"),
        ("CE recovered (zero)", downstream, "ce_recovered_zero"),
        ("CE recovered (mean)", downstream, "ce_recovered_mean"),
        ("KL(clean || spliced)", downstream, "kl"),
        ("top-1 agreement", downstream, "top1_agreement"),
        ("perplexity clean", downstream, "perplexity_clean"),
        ("perplexity spliced", downstream, "perplexity_sae"),
        ("silent on the test split", core, "silent"),
        ("features recovered", recovery, "recovered"),
        ("recovered one to one", recovery, "recovered_matched"),
        ("false among live atoms", recovery, "false_atoms"),
    ):
        if name in group:
            estimate = group[name]
            interval = _interval(estimate["low"], estimate["high"], ".4g")
            table.add_row(label, _number(estimate["value"]), interval)
    table.add_row("dead", _number(training["dead"]), "")
    table.add_row("tokens trained on", f"{training['tokens']:,}", "")
    for name in ("core", "downstream"):
        documents = results.get(name, {}).get("tokens", {}).get("documents")
        if documents is not None:
            table.add_row(f"documents ({name})", f"{documents:,}", "")
    rate = training["vectors_per_second"]
    table.add_row("vectors/s", _number(rate), "")
    Console().print(table)
    latents = results.get("glimpse", {}).get("details", {}).get("latents", [])
    for one in latents[len(latents) // 8 :: max(1, len(latents) // 3)][:_LATENTS]:
        Console().print(_latent(one))


def print_results(results: Mapping[str, EvalResult], title: str) -> None:
    """Print every metric of some evaluations with its interval."""
    table = Table("evaluation", "metric", "value", "95 % interval", title=title)
    for column in table.columns:
        column.overflow = "fold"  # a name that is cut off cannot be looked up
    for word, result in results.items():
        for name, estimate in result.metrics.items():
            table.add_row(
                word,
                name,
                "undefined" if estimate.value is None else f"{estimate.value:.5g}",
                _interval(estimate.low, estimate.high, ".5g"),
            )
    console = Console()
    console.print(table)
    for word, result in results.items():
        counts = ", ".join(f"{count:,} {unit}" for unit, count in result.tokens.items())
        console.print(f"{word} was measured on {counts}.", style="dim", highlight=False)


def _latent(one: Mapping[str, Any]) -> Text:
    """A latent and its strongest context; the darker a token, the more it fires there."""
    line = Text(f"latent {one['latent']} ({100 * one['density']:.2g} % of the rows): ", "dim")
    if not one["contexts"]:
        return line
    context = one["contexts"][0]
    for i, (piece, value) in enumerate(zip(context["pieces"], context["values"], strict=True)):
        share = (value or 0) / one["max"]
        style = "bold reverse" if i == context["peak"] else "bold" if share > 0.5 else ""
        line.append(visible(piece), style or ("underline" if share > 0 else ""))
    return line


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(low: float | None, high: float | None, form: str) -> str:
    return "–" if low is None or high is None else f"{low:{form}} to {high:{form}}"
