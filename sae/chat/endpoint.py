"""Any server that speaks OpenAI's chat completions over HTTP."""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from sae.chat.messages import Echo, Failure, Reply, Request
from sae.errors import ConfigError, SourceError

_TRIES = 6
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_WAIT_SECONDS = 300.0
"""Time that a server may ask for; one that asks for more has no answer today."""
_LARGEST_BODY_BYTES = 4_000_000
_NO_SERVICE = {
    401: "it does not accept the key. Check the variable that key_env names",
    403: "it forbids this key to use the model. Choose another model or key",
    404: "it knows no such address or model. Check base_url, which mostly ends with /v1, and model",
}
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_PASSING = (408, 409, 425, 429)


class Endpoint:
    """A server; requests are repeated after failures that may pass.

    Args:
        base_url: Address without `/chat/completions`.
        model: Name of the model there.
        key: Sent as a bearer token, and written nowhere; None: none is sent.
        concurrency: Requests at once.
        timeout: Seconds for a try, from the connection to the last byte of the reply.

    Raises:
        ConfigError: If the address is not one that may be asked.
    """

    def __init__(
        self, base_url: str, model: str, key: str | None = None, *, concurrency: int = 8,
        timeout: float = 60.0,
    ):  # fmt: skip
        check_url(base_url)
        self.identity: Mapping[str, Any] = {"base_url": base_url.rstrip("/"), "model": model}
        self.concurrency, self.timeout = concurrency, timeout
        self.first_pause = 1.0
        """Seconds before the second try; each further pause is twice as long."""
        self._key = key
        self._stop = Event()

    def reply(self, request: Request | Echo) -> Reply:
        """Send a request until a reply comes: at most 6 tries with growing pauses.

        Raises:
            Failure: If no try gets a reply.
            SourceError: If the server does not accept the key, or does not know the model.
        """
        pause = self.first_pause
        for left in reversed(range(_TRIES)):
            try:
                return self._once(request)
            except Failure as failure:
                if failure.lasting or not left or self._stop.is_set():
                    raise
                # jitter, so that requests that failed together do not come back together
                self._stop.wait(max(failure.wait_seconds, pause * random.uniform(0.5, 1.5)))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def session(self) -> Iterator[None]:
        """Keep connections inside the block."""
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._stop.clear()
        here = urlsplit(self.identity["base_url"]).hostname in _THIS_MACHINE
        http = httpx2.AsyncClient(
            headers=headers, timeout=None, trust_env=not here,  # no proxy to oneself
            limits=httpx2.Limits(max_connections=self.concurrency),
        )  # fmt: skip
        # an event loop, since only a task can be ended while it waits, whatever it waits for
        with (
            start_blocking_portal() as self._portal,
            self._portal.wrap_async_context_manager(http) as self._http,
        ):
            yield

    def stop(self) -> None:
        """End pauses between tries, and try no more in this session."""
        self._stop.set()

    def _once(self, request: Request | Echo) -> Reply:
        try:
            content = self._portal.call(self._content, request)
        except TimeoutError:
            raise Failure(f"no whole reply within {self.timeout:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            raise Failure(self._clean(f"{type(error).__name__}: {error}")) from None
        return _reply(content, request)

    async def _content(self, request: Request | Echo) -> bytes:
        """The body of a reply; raises for whatever is not one."""
        url = f"{self.identity['base_url']}{request.path}"
        body = {"model": self.identity["model"], **request.to_json()}
        content = b""
        with anyio.fail_after(self.timeout):
            async with self._http.stream("POST", url, json=body) as response:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > _LARGEST_BODY_BYTES:
                        raise Failure("a reply of more than 4 MB", lasting=True)
        self._check(response, content)
        return content

    def _check(self, response: httpx2.Response, content: bytes) -> None:
        """Raise for whatever is not a reply."""
        status = response.status_code
        if status == 200:
            return
        said = self._clean(_message(content))
        if status in _NO_SERVICE:
            raise SourceError(
                f"{self.identity['base_url']} answers {status}: {_NO_SERVICE[status]}. "
                f"It says: {said}"
            )
        if response.is_redirect:
            raise SourceError(
                f"{self.identity['base_url']} redirects requests to another address. Redirects are "
                "not followed, since they would send the key there. Give the final address as "
                "base_url."
            )
        wait = _retry_after(response.headers.get("Retry-After"))
        lasting = status < 500 and status not in _PASSING or wait > _LONGEST_WAIT_SECONDS
        raise Failure(f"the server answers {status}: {said}", lasting, wait)

    def _clean(self, text: str) -> str:
        """A server's words in one short line, without the key, which some servers repeat.

        Backslashes go, since a key may be repeated with its signs escaped; so does what a terminal
        would obey.
        """
        text = text.replace("\\", "")
        if self._key:
            text = text.replace(self._key, "…")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]


def check_url(base_url: str, name: str = "base_url") -> None:
    """Refuse addresses that are not of a server, or that hold a password.

    Args:
        base_url: The address.
        name: Name of the setting, for the message.

    Raises:
        ConfigError: If it is such an address; it is not repeated where it may hold a secret.
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
        httpx2.URL(base_url)
        (host or "").encode("idna")
    except (ValueError, httpx2.InvalidURL):
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"{name} is not the address of a server. Give one with http:// or https://, such as "
            "http://127.0.0.1:8000/v1, or `local` for the LM under "
            "study."
        )
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{name} holds a user, a password or a query, and settings are written into results. "
            "Give the plain address, and the key in the variable that key_env names."
        )


def _reply(content: bytes, request: Request | Echo) -> Reply:
    """The reply in a body.

    Raises:
        Failure: If it is not one.
    """
    try:
        body = json.loads(content)
        choice, usage = body["choices"][0], body.get("usage") or {}
        if isinstance(request, Echo):
            if not choice["logprobs"]:
                raise Failure("the server gives no log-probabilities of the prompt", lasting=True)
            text, refused = json.dumps(choice["logprobs"]), False
        else:
            message = choice["message"]
            text = _text(message.get("content"))
            filtered = choice.get("finish_reason") == "content_filter"
            refused = bool(message.get("refusal")) or filtered
        prompt = _count(usage.get("prompt_tokens"), request.prompt_tokens)
        written = _count(usage.get("completion_tokens"), request.max_tokens)
    except (ValueError, RecursionError):  # cut off: the next one may be whole
        raise Failure("the server answers something that is not JSON") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        # whole, and perhaps paid for: the next one would be no other
        raise Failure("the server's answer is not a completion", lasting=True) from None
    return Reply(text.encode("utf-8", "replace").decode(), prompt, written, refused)


def _text(content: Any) -> str:
    """The words of a message: a text, or a list of parts some of which are texts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _count(given: Any, estimate: int) -> int:
    """Tokens as the server counts them; the estimate where it gives no number."""
    known = isinstance(given, int | float) and 0 <= given < 10**9
    return int(given) if known else estimate


def _message(content: bytes) -> str:
    """The words of an error."""
    text = content[:2000].decode(errors="replace")
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def _retry_after(header: str | None) -> float:
    """Seconds that the header asks to wait: a number, or a date.

    Example:
        >>> _retry_after("2"), _retry_after(None), _retry_after("soon")
        (2.0, 0.0, 0.0)
    """
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header)) if header.strip()[:1].isdigit() else max(
            0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        )  # fmt: skip
    except (ValueError, TypeError, OverflowError):
        return 0.0
