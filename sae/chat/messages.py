"""Requests to a chat LM, its replies, and the protocol of whatever answers."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant"]
_REFUSAL = re.compile(
    r"\s*(I['’]m sorry|I am sorry|I apologi[sz]e|I can['’]?t |I cannot |I am unable"
    r"|I['’]m unable|as an AI)", re.IGNORECASE,
)  # fmt: skip
_BYTES_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 8


@dataclass(frozen=True)
class Request:
    """A conversation that a chat LM continues by one message, at temperature 0.

    Attributes:
        messages: Roles and texts.
        max_tokens: Longest reply.
    """

    messages: tuple[tuple[Role, str], ...]
    max_tokens: int
    path: ClassVar[str] = "/chat/completions"

    def to_json(self) -> dict[str, Any]:
        """The body of a request to `/chat/completions`, without the model."""
        messages = [
            {"role": role, "content": text.encode("utf-8", "replace").decode()}  # half characters
            for role, text in self.messages
        ]
        return {"messages": messages, "max_tokens": self.max_tokens, "temperature": 0}

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, estimated: English has four bytes a token, so three are safe.

        Example:
            >>> Request((("user", "a" * 30),), 5).prompt_tokens
            18
        """
        return sum(_TOKENS_PER_MESSAGE + _tokens(text) for _, text in self.messages)


@dataclass(frozen=True)
class Echo:
    """A text that an LM reads, and gives the log-probabilities of its tokens.

    Attributes:
        text: The text.
        top: Likeliest tokens that are wanted at each place; 0: none.
    """

    text: str
    top: int = 0
    path: ClassVar[str] = "/completions"
    max_tokens: ClassVar[int] = 1
    """Tokens that are written and thrown away: some servers write at least one."""

    def to_json(self) -> dict[str, Any]:
        """The body of a request to `/completions`, without the model."""
        return {
            "prompt": self.text.encode("utf-8", "replace").decode(), "echo": True,
            "logprobs": max(1, self.top), "max_tokens": self.max_tokens, "temperature": 0,
        }  # fmt: skip

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the text, estimated as those of a `Request`."""
        return _tokens(self.text)


def _tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)


class Reply(NamedTuple):
    """The message that a chat LM wrote.

    Args:
        text: As it came; it may hold anything. Of an `Echo` the log-probabilities, as JSON.
        prompt_tokens: Tokens that it read, as the server counts them.
        reply_tokens: Tokens that it wrote.
        filtered: True where the server says that it refused or was kept from answering.
    """

    text: str
    prompt_tokens: int
    reply_tokens: int
    filtered: bool = False

    @property
    def refuses(self) -> bool:
        """Tell whether the LM refuses to answer.

        Example:
            >>> Reply("I'm sorry, but I can't help with that.", 9, 9).refuses
            True
        """
        return self.filtered or _REFUSAL.match(self.text) is not None


def without_thoughts(reply: str) -> str:
    """A reply without the thoughts that some LMs write first; nothing if these do not end.

    Example:
        >>> without_thoughts("<think>Hm: [0]</think>[1]"), without_thoughts("<think>Hm: [0]")
        ('[1]', '')
    """
    return re.sub(r"<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL)


class Failure(Exception):
    """A request that got no reply.

    Args:
        reason: Text to show to people; holds no key.
        lasting: True if the same request would fail again.
        wait_seconds: Time that the server asks for before the next try.
    """

    def __init__(self, reason: str, lasting: bool = False, wait_seconds: float = 0.0):
        super().__init__(reason)
        self.lasting, self.wait_seconds = lasting, wait_seconds


@runtime_checkable
class Client(Protocol):
    """Answers requests; several threads may ask at once.

    Attributes:
        identity: Everything that decides the replies, plain JSON values; holds no key.
        concurrency: Requests that it takes at once.
    """

    identity: Mapping[str, Any]
    concurrency: int

    def reply(self, request: Request | Echo) -> Reply:
        """The reply; call it inside `session`.

        Raises:
            Failure: If this request gets none.
            SourceError: If no request would get one: wrong key, unknown model.
        """
        ...

    def session(self) -> AbstractContextManager[Any]:
        """Connections, open inside the block."""
        ...

    def stop(self) -> None:
        """End pauses between tries, and try no more in this session."""
        ...
