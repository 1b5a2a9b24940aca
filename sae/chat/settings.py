"""Settings of a chat LM, and the desk that they describe."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, model_validator

from sae.chat.desk import Desk
from sae.chat.endpoint import Endpoint, check_url
from sae.chat.local import LOCAL, Local
from sae.errors import ConfigError
from sae.language.lm import LanguageModel
from sae.settings import Allowed, Settings, setting


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        # not repeated: it may be the key itself
        raise ConfigError(
            "chat.key_env is not the name of an environment variable. Put the key into a variable "
            "and give the variable's name, such as OPENAI_API_KEY."
        )
    return name


def _address(url: str) -> str:
    if url != LOCAL:
        check_url(url, "chat.base_url")
    return url


class ChatSettings(Settings):
    """Settings of a chat LM; without `base_url` no request is sent."""

    where = "chat."

    base_url: Annotated[str, AfterValidator(_address), Allowed("an address")] | None = setting(
        None, help="address of a server with OpenAI's API (http://127.0.0.1:8000/v1), or local: "
        "the LM under study; null: nobody is asked",
    )  # fmt: skip
    model: str | None = setting(None, help="name of the model on that server")
    key_env: Annotated[str, AfterValidator(_variable)] | None = setting(
        "OPENAI_API_KEY", help="environment variable that holds the key; null: no key is sent"
    )
    concurrency: int = setting(8, ge=1, le=256, help="requests that a server gets at once")
    budget: int = setting(
        1_000_000, ge=0, help="most tokens, prompts and replies together; kept replies cost none"
    )
    timeout: float = setting(60.0, gt=0, help="seconds that a server has for a whole reply")

    @model_validator(mode="after")
    def _named(self) -> "ChatSettings":
        served = self.base_url not in (None, LOCAL)
        if served and not self.model:
            raise ConfigError(
                "chat.model has no value. Give the name that the server has for the model."
            )
        if not served and self.model is not None:
            raise ConfigError(
                f"chat.model={self.model} has no effect without a server. Give chat.base_url, or "
                "leave the model out."
            )
        return self

    def check_key(self) -> None:
        """Check that the environment holds the key.

        Raises:
            ConfigError: If a server is asked and the variable holds no key, or what cannot be one.
        """
        if self.base_url in (None, LOCAL) or self.key_env is None:
            return
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise ConfigError(
                f"The environment variable {self.key_env} holds no key. Set it, name another one "
                "by chat.key_env, or give chat.key_env=null if the server needs none."
            )
        if not re.fullmatch("[!-~]+", key):  # not repeated; no HTTP header may hold it
            raise ConfigError(
                f"The environment variable {self.key_env} holds something that is not a key: it "
                "has a space, a line break or a letter that is not ASCII. Was it pasted in whole?"
            )

    def desk(self, lm: LanguageModel | None) -> Desk:
        """The desk that asks this chat LM; call it only where `base_url` is given.

        Args:
            lm: The LM under study, which `local` stands for.

        Raises:
            ConfigError: If the key is missing.
        """
        self.check_key()
        if self.base_url == LOCAL:
            assert lm is not None
            return Desk(Local(lm), self.budget)
        assert self.base_url is not None
        assert self.model is not None
        key = None if self.key_env is None else os.environ[self.key_env].strip()
        return Desk(
            Endpoint(
                self.base_url, self.model, key, concurrency=self.concurrency, timeout=self.timeout
            ),
            self.budget,
        )
