"""A dashboard of latents that opens from disk, with no network and no server."""

from sae.reports.dashboard.own_text import packed_text
from sae.reports.dashboard.writer import write_dashboard

__all__ = ["packed_text", "write_dashboard"]
