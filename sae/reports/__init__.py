"""Pages, tables and plots made of what is on disk; nothing here trains or measures."""

from sae.reports.report import write_report
from sae.reports.sweep import write_sweep

__all__ = ["write_report", "write_sweep"]
