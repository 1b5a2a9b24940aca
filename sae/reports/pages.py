"""Pages and tables for people, of evaluations that have them."""

from collections.abc import Callable
from pathlib import Path

from sae.evals.base import EvalResult
from sae.reports.compare import write_comparison
from sae.reports.frontier import write_frontier

PAGES: dict[str, Callable[[EvalResult, Path], None]] = {
    "compare": write_comparison, "frontier": write_frontier,
}  # fmt: skip
"""Writers of pages by the name of the evaluation."""


def write_pages(result: EvalResult, folder: Path) -> None:
    """Write the pages of a result, if its evaluation has any."""
    if result.eval in PAGES:
        PAGES[result.eval](result, folder)
