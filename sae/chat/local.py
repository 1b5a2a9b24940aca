"""An LM in this process as a chat LM."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from sae.chat.messages import Echo, Failure, Reply, Request
from sae.errors import ConfigError
from sae.language.chat import answer
from sae.language.lm import LanguageModel

LOCAL = "local"
"""Given as base_url: the LM under study is asked."""


class Local:
    """The LM under study, or another one, with the chat template of its tokenizer.

    Args:
        lm: The LM.
    """

    concurrency = 1

    def __init__(self, lm: LanguageModel):
        self.lm = lm
        self.identity: Mapping[str, Any] = {
            "base_url": LOCAL, "model": lm.name, "lm": lm.identity, "dtype": str(lm.dtype),
        }  # fmt: skip

    def reply(self, request: Request | Echo) -> Reply:
        """The likeliest reply, token by token.

        Raises:
            Failure: If the conversation is longer than the LM allows.
            SourceError: If the tokenizer has no chat template.
        """
        if isinstance(request, Echo):
            raise Failure("the LM of this process is not asked for log-probabilities", lasting=True)
        messages = request.to_json()["messages"]
        try:
            text, prompt, written = answer(self.lm, messages, request.max_tokens)
        except ConfigError as error:
            raise Failure(str(error), lasting=True) from None
        return Reply(text, prompt, written)

    def session(self) -> AbstractContextManager[None]:
        """An empty block: there is no connection to open."""
        return nullcontext()

    def stop(self) -> None:
        """Do nothing: there are no pauses to end."""
