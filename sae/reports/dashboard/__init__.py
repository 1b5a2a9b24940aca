"""A dashboard of latents that opens from disk, with no network and no server."""

from sae.reports.dashboard.live import actions
from sae.reports.dashboard.own_text import packed_text
from sae.reports.dashboard.server import Server, run
from sae.reports.dashboard.writer import render, write_dashboard

__all__ = ["Server", "actions", "packed_text", "render", "run", "write_dashboard"]
