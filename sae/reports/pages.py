"""Pages and tables for people, of evaluations that have them."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from sae.artifacts.placed import PlacedSAE
from sae.evals.base import EvalResult
from sae.features import Records
from sae.features.ablated import known
from sae.features.exports import export
from sae.features.own_text import reading_in
from sae.reports import page as report
from sae.reports.autointerp import write_autointerp
from sae.reports.case_study import write_case_study
from sae.reports.circuit import write_circuit
from sae.reports.compare import write_comparison
from sae.reports.dashboard import Server, actions, packed_text, render, write_dashboard
from sae.reports.erasure import write_erasure
from sae.reports.explained import explanation_columns, explanations_of
from sae.reports.files import write_bytes
from sae.reports.frontier import write_frontier
from sae.reports.interpretability import write_interpretability
from sae.reports.ioi import write_ioi
from sae.reports.purity import purity_columns, write_purity
from sae.reports.steer import write_steer
from sae.types import Ends


def _write_latents(result: EvalResult, folder: Path) -> None:
    found = Records(result.details["records"], result.details["weights"])
    title, shown = _heading(found)
    shutil.rmtree(folder / "export", ignore_errors=True)
    if words := result.details["export"]:
        explanations = explanations_of(result, folder.parent, found.d_sae)
        for word in words:
            export(found, word, folder / "export" / word, explanations)
    file = result.details["own_text"]
    own = None if file is None else packed_text(reading_in(Path(file)), found)
    write_dashboard(
        folder, found, found.text, title=title, facts=shown, own_text=own, effects=known(found),
        command=_again(result),
        columns=explanation_columns(result, folder.parent)
        | purity_columns(result, folder.parent)
        | result.details["sets"],
    )  # fmt: skip


def _heading(found: Records) -> tuple[str, dict[str, str]]:
    facts = found.facts
    return f"Latents of {facts['point']} · {facts['lm']}", {
        "LM": facts["lm"], "point": facts["point"], "text": facts["text"],
        "tokens": f"{facts['tokens']:,}", "rows that count": f"{facts['rows']:,}",
        "latents that fire": f"{len(found):,} of {facts['latents']:,}",
    }  # fmt: skip


def served(result: EvalResult, folder: Path, one: PlacedSAE) -> Server:
    """A server of the dashboard that `write_pages` wrote, with live text; not started.

    Args:
        result: Result of the evaluation `dashboard`.
        folder: The dashboard.
        one: The SAE, whose LM is loaded here.
    """
    found = Records(result.details["records"], result.details["weights"])
    title, facts = _heading(found)

    def page(token: str) -> str:
        return render(title, found.text, facts, token)

    return Server(folder, page, actions(one, found), result.settings["port"])


def _again(result: EvalResult) -> str:
    """The command that makes the dashboard again; "" where a latent cannot be ablated."""
    if len(Ends.parse(result.provenance["point"]).points) > 1:
        return ""
    name, *given = result.provenance["command"]
    if name != "evaluate.py":
        given = [f"run={result.details['run'] or '<run>'}", "eval=[dashboard]"]
    own = ("eval.dashboard.ablate=", "eval.dashboard.serve=")
    return shlex.join(["python", "evaluate.py", *(w for w in given if not w.startswith(own))])


def _write_glimpse(result: EvalResult, folder: Path) -> None:
    section = report.Section("What it learned", latents=result.details["latents"])
    folder.mkdir(parents=True, exist_ok=True)
    page = report.render(
        "Some latents", "chosen blindly from bins of density · test text", [section]
    )
    write_bytes(folder / "index.html", page)


PAGES: dict[str, Callable[[EvalResult, Path], None]] = {
    "compare": write_comparison, "frontier": write_frontier, "dashboard": _write_latents,
    "case_study": write_case_study, "glimpse": _write_glimpse, "purity": write_purity,
    "ioi": write_ioi,
    "circuit": write_circuit,
    "erasure": write_erasure, "steer": write_steer, "autointerp": write_autointerp,
    "interpretability": write_interpretability,
}  # fmt: skip
"""Writers of pages by the name of the evaluation."""


def write_pages(result: EvalResult, folder: Path) -> bool:
    """Write the pages of a result; returns whether its evaluation has any."""
    if result.eval in PAGES:
        PAGES[result.eval](result, folder)
    return result.eval in PAGES
