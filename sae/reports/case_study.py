"""`index.html` of a case study: input, output and intermediate view of a latent."""

from pathlib import Path
from typing import Any

from sae.evals.base import EvalResult
from sae.language.pieces import visible
from sae.reports.files import write_bytes
from sae.reports.page import Cell, Plot, Section, Table, number, plain, render


def write_case_study(result: EvalResult, folder: Path) -> None:
    """Write the page.

    Args:
        result: Result of the evaluation `case_study`.
        folder: Folder to write `index.html` to.
    """
    details = result.details
    metrics = {name: estimate.value for name, estimate in result.metrics.items()}
    sections = [
        Section("Input: where it fires", plots=_stacked(details), latents=[details["record"]]),
        Section(
            "Output: the logits without it",
            tables=[
                _logits("Lowered by the ablation", details["logits"]["lowered"]),
                _logits("Raised by the ablation", details["logits"]["raised"]),
            ],
            narrow=True,
        ),
        Section(
            "Below: latents that feed it", tables=[_feeds(details)] if details["feeds"] else []
        ),
        Section("Latents on the last token", tables=[_found(details)] if details["found"] else []),
    ]
    tiles = [
        {"label": label, "value": number(name, metrics[name]).text, "note": note}
        for label, name, note in (
            ("Density", "density", "share of the rows"),
            ("Maximum", "max", "in the LM's units"),
            ("KL without it", "kl_ablated", "nats where it fires"),
            ("KL of a random step", "kl_random", "equally long, the control"),
        )
    ]
    subtitle = f"{details['text']}{' · training text' if details['split'] == 'train' else ''}"
    page = render(f"Latent {details['latent']}", subtitle, sections, tiles)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "index.html", page)


def _stacked(details: dict[str, Any]) -> list[Plot]:
    stacks = details["by_token"]
    largest, bins = details["record"]["max"], len(stacks["others"])
    middles = [largest * (i + 0.5) / bins for i in range(bins)]
    names = [repr(visible(token)) for token in stacks["tokens"]]
    traces = [
        {"type": "bar", "x": middles, "y": counts, "name": plain(name)}
        for name, counts in zip(
            [*names, "others"], [*stacks["counts"], stacks["others"]], strict=True
        )
    ]
    axis = {"title": {"text": "activation"}}
    layout: dict[str, Any] = {"barmode": "stack", "bargap": 0, "xaxis": axis}
    firings = {"yaxis": {"title": {"text": "firings"}}}
    shares = {"barnorm": "percent", "yaxis": {"title": {"text": "share of the bin, %"}}}
    return [
        Plot("Activations by token", "the tokens with most mass", traces, layout | firings),
        Plot("Share of each bin", "what fires so strongly", traces, layout | shares),
    ]


def _logits(name: str, changes: list[list[Any]]) -> Table:
    rows = [[Cell(visible(token)), number("", change)] for token, change in changes]
    return Table(name, ["token", "mean change of the logit"], rows)


def _feeds(details: dict[str, Any]) -> Table:
    rows = [
        [Cell(str(feed["latent"]), feed["latent"]),
         *(number("", feed[name]) for name in ("activation", "product", "change"))]
        for feed in details["feeds"]
    ]  # fmt: skip
    columns = ["latent below", "activation", "by the straight path", "change when ablated"]
    note = f"SAE {details['below']}; at the peaks of the contexts above"
    return Table("Latents that feed it", columns, rows, note)


def _found(details: dict[str, Any]) -> Table:
    rows = [
        [Cell(str(one["latent"]), one["latent"]),
         number("", one["activation"]), number("", one["density"])]
        for one in details["found"]
    ]  # fmt: skip
    return Table("Latents", ["latent", "activation", "density"], rows)
