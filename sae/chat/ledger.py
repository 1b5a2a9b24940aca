"""Replies of chat LMs on disk, by request: nothing is paid for twice."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae.chat.messages import Echo, Reply, Request
from sae.checksums import read_sealed, seal
from sae.errors import ArtifactError
from sae.provenance import cache_dir, content_key, write_json

log = logging.getLogger(__name__)
ABOUT = "client.json"
"""File beside the replies that says whose they are."""


def ledger_dir() -> Path:
    """Folder of all ledgers in the cache."""
    return cache_dir() / "chat"


class Ledger:
    """Replies of one client, a file for each request.

    Args:
        identity: Identity of the client; the ledger of another server or model is another folder.
    """

    def __init__(self, identity: Mapping[str, Any]):
        self.folder = ledger_dir() / content_key(identity)
        if not (self.folder / ABOUT).exists():
            write_json(self.folder / ABOUT, dict(identity))

    @contextmanager
    def held(self, request: Request | Echo) -> Iterator[None]:
        """Keep a request from other threads and processes, which then find its reply."""
        with FileLock(f"{self._file(request)}.lock"):
            yield

    def find(self, request: Request | Echo) -> Reply | None:
        """The reply that was kept; None if there is none, or it is damaged."""
        file = self._file(request)
        if not file.exists():
            return None
        try:
            return Reply(**read_sealed(file)["reply"])
        except (ArtifactError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s). The request is sent again.", file, error)
            return None

    def keep(self, request: Request | Echo, reply: Reply) -> None:
        """Write a reply, in one step."""
        content = {"request": request.to_json(), "reply": reply._asdict()}
        write_json(self._file(request), seal(content))

    def forget(self, request: Request | Echo) -> None:
        """Drop a reply that is of no use, so that the request is sent again."""
        self._file(request).unlink(missing_ok=True)

    def _file(self, request: Request | Echo) -> Path:
        return self.folder / f"{content_key(request.to_json())}.json"
