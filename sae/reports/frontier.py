"""Tables, pictures and a page of runs on the plane of sparsity and fidelity."""

from pathlib import Path

from sae.evals.base import EvalResult
from sae.metrics.lines import by_line
from sae.reports.files import table_bytes, write_bytes
from sae.reports.frontier_page import frontier_page
from sae.reports.frontier_plots import fidelity_picture, live_picture


def write_frontier(result: EvalResult, folder: Path) -> None:
    """Write `frontier.csv`, `areas.csv`, two pictures and `report.html`.

    With several seeds of a setting also `seeds.csv`.
    """
    runs, areas, seeds = (
        result.tables[name].rows() if name in result.tables else []
        for name in ("runs", "lines", "seeds")
    )
    for file, rows in {"frontier.csv": runs, "areas.csv": areas, "seeds.csv": seeds}.items():
        if rows:
            write_bytes(folder / file, table_bytes(list(rows[0]), rows))
    lines = by_line(runs)
    write_bytes(folder / "frontier.png", fidelity_picture(lines))
    write_bytes(folder / "live.png", live_picture(runs))
    page = frontier_page(runs, lines, areas, seeds, result.details["missing"])
    write_bytes(folder / "report.html", page)
