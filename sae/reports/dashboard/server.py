"""A finished dashboard at 127.0.0.1, with actions that its page may ask for; for one person.

Only files that were there at the start are given out, by their exact addresses, so there is no
path to leave the folder by. What is computed is asked for by POST with the token of this start,
one request at a time.
"""

import errno
import hmac
import json
import logging
import os
import secrets
import socketserver
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from sae.errors import SAEError

log = logging.getLogger(__name__)
Action = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Makes an answer of a question, both plain JSON values; SAEErrors are told to the page."""
MAX_BODY = 131_072
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-slickgrid'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dashboard"
)
"""Policy of the page on disk, with permission to send requests to this server."""


class Server(ThreadingHTTPServer):
    """The server, bound and not started; `serve_forever` starts it.

    Args:
        folder: The dashboard.
        page: Makes `index.html`, given the token.
        actions: Functions by address, such as `/live/text`.
        port: 0, or one that is taken: a free one is chosen.
    """

    def __init__(
        self, folder: Path, page: Callable[[str], str], actions: Mapping[str, Action], port: int
    ) -> None:
        self.token = secrets.token_urlsafe(32)
        self.page = page(self.token).encode()
        self.files, self.actions = files_of(folder), actions
        self.busy, self.worker = Lock(), None
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            super().__init__(("127.0.0.1", 0), _Handler)
        self.worker = ThreadPoolExecutor(1)  # a failed bind closes, and would end it
        own = self.server_address[1]
        self.hosts = {f"127.0.0.1:{own}", f"localhost:{own}"}
        self.origins = {f"http://{host}" for host in self.hosts}

    @property
    def url(self) -> str:
        """Address for a browser."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)

    def server_close(self) -> None:
        """Close the server once the running computation has ended; waiting ones are cancelled."""
        super().server_close()
        if self.worker is not None:
            self.worker.shutdown(cancel_futures=True)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a connection that broke off, at level DEBUG: nobody needs a traceback."""
        log.debug("a request was broken off", exc_info=True)


def run(server: Server) -> None:
    """Serve the dashboard until Ctrl-C; log its address first."""
    with server:
        log.info("open %s in a browser of this machine; Ctrl-C ends", server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            log.info("stopped: the dashboard stays in its folder")


def files_of(folder: Path) -> dict[str, Path]:
    """Scripts and styles of a dashboard by address; links are left out."""
    found = {}
    for part in ("assets", "data"):
        if (folder / part).is_symlink():
            continue
        for place, _, names in os.walk(folder / part):
            for path in (Path(place, name) for name in names):
                if path.suffix in TYPES and path.is_file() and not path.is_symlink():
                    found[f"/{path.relative_to(folder).as_posix()}"] = path
    return found


class _Refused(Exception):
    """A request that is not answered: status, and why."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "lightning-sae", ""
    timeout = 20
    """Seconds that a read or a write may wait."""

    def do_GET(self) -> None:
        self._try(self._get)

    def do_HEAD(self) -> None:
        self._try(self._get)

    def do_POST(self) -> None:
        self._try(self._post)

    def _try(self, answer: Callable[[], None]) -> None:
        try:
            self._check_sender()
            answer()
        except _Refused as refused:
            status, why = refused.args
            self._json(status, {"error": why})

    def _check_sender(self) -> None:
        """Refuse pages of other origins, also those whose name was bound to this address."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or hosts[0] not in self.server.hosts:
            raise _Refused(403, "This server answers to 127.0.0.1 and localhost alone.")
        if origin is None and self.command != "POST":
            return
        if origin not in self.server.origins:
            raise _Refused(403, "Another page may not ask this server.")

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        if path in self.server.actions:
            raise _Refused(405, "Ask by POST.")
        if path in ("/", "/index.html"):
            self._send(200, "text/html; charset=utf-8", self.server.page)
            return
        file = self.server.files.get(path)
        try:
            kind, content = ("", None) if file is None else (TYPES[file.suffix], _content(file))
        except OSError:  # it is gone, or a link now
            kind, content = "", None
        if content is None:
            raise _Refused(404, "There is no such file.")
        self._send(200, kind, content)

    def _post(self) -> None:
        action = self.server.actions.get(self.path)
        if action is None:
            raise _Refused(404, "There is nothing to ask here.")
        given = (self.headers.get("X-Token") or "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, self.server.token.encode()):
            raise _Refused(403, "The server was started again. Load the page again.")
        question = self._question()
        if not self.server.busy.acquire(blocking=False):
            raise _Refused(503, "Another request is being computed. Try again in a moment.")
        try:
            assert self.server.worker is not None
            answer = _as_json(self.server.worker.submit(action, question).result())
        except SAEError as error:
            raise _Refused(422, str(error)) from None
        except Exception:
            log.exception("%s failed", self.path)
            raise _Refused(500, "This failed; the terminal of the server says why.") from None
        finally:
            self.server.busy.release()
        self._send(200, "application/json", answer)

    def _question(self) -> Mapping[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise _Refused(415, "Send application/json.")
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise _Refused(411, "Say how long the question is.")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise _Refused(413, f"A question may have {MAX_BODY:,} bytes.")
        try:
            question = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _Refused(400, "The question is not JSON.") from None
        if not isinstance(question, dict):
            raise _Refused(400, "The question is not a JSON object.")
        return question

    def _json(self, status: int, content: Mapping[str, Any]) -> None:
        self._send(status, "application/json", _as_json(content))

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(content)), "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Content-Security-Policy": POLICY,
            "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
            "Cross-Origin-Opener-Policy": "same-origin",
            **({"Retry-After": "1"} if status == 503 else {}),
            **({"Allow": "POST"} if status == 405 else {}),
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Errors of the protocol, as JSON like all others."""
        self.close_connection = True
        self._json(int(code), {"error": message or "This request is not understood."})

    def log_message(self, format: str, *args: Any) -> None:
        """Not for the terminal: addresses are written by whoever asks."""
        log.debug(format, *args)


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode("ascii")


def _content(file: Path) -> bytes:
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as opened:
        return opened.read()
