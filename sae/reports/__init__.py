"""Pages, tables and plots made of what is on disk; nothing here trains or measures."""

from sae.reports.compare import write_comparison
from sae.reports.frontier import read_frontier, write_frontier
from sae.reports.report import results_table, write_report
from sae.reports.summary import print_results, print_summary
from sae.reports.sweep import finish_sweep, job_ended, write_sweep

__all__ = [
    "finish_sweep",
    "job_ended",
    "print_results",
    "print_summary",
    "read_frontier",
    "results_table",
    "write_comparison",
    "write_frontier",
    "write_report",
    "write_sweep",
]
