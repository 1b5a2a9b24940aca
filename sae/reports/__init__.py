"""Pages, tables and plots made of what is on disk; nothing here trains or measures."""

from sae.reports.pages import write_pages
from sae.reports.report import results_table, write_report
from sae.reports.summary import print_results, print_summary
from sae.reports.sweep import finish_sweep, job_ended, write_sweep

__all__ = [
    "finish_sweep",
    "job_ended",
    "print_results",
    "print_summary",
    "results_table",
    "write_pages",
    "write_report",
    "write_sweep",
]
