"""Prompts with a common beginning: its keys and values are computed once."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.language.generate import new_cache
from sae.language.lm import LanguageModel
from sae.language.weights import check_embedded
from sae.types import Point


class Prefix:
    """Tokens that many prompts start with.

    A pass over what follows costs as much as its own tokens. The prefix is read when it is made,
    so edits that are in place later (`sae.intervene`) do not reach it.

    Args:
        lm: The LM.
        tokens: Token ids of the prefix, one or more.
        points: Points whose activations are wanted: the LM runs no further than the last of them.
            (): logits are wanted.

    Raises:
        ConfigError: If no token could follow it.
    """

    def __init__(
        self, lm: LanguageModel, tokens: Int[Tensor, " prefix"], points: Sequence[Point] = ()
    ):
        self.lm, self.length, self.points = lm, len(tokens), points
        if self.length >= lm.max_ctx:
            raise ConfigError(
                f"A text of {self.length} tokens stands before the others; {lm.name} allows "
                f"{lm.max_ctx} in all. Give a shorter one."
            )
        self._cache: dict[str, Any] = new_cache(lm.model)
        if points:
            lm.capture(tokens[None], points, self._cache)
        else:
            self._read(tokens[None], self._cache)

    def capture(
        self, tokens: Int[Tensor, "batch new"]
    ) -> dict[Point, Float[Tensor, "batch new d"]]:
        """Activations of the tokens that follow the prefix, in the LM's dtype.

        Raises:
            ConfigError: If the prompts are longer than the LM allows.
        """
        return self.lm.capture(tokens, self.points, self._behind(tokens))

    def logits(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new vocab"]:
        """Next-token logits after each token that follows the prefix, in the LM's dtype.

        Raises:
            ConfigError: If the prompts are longer than the LM allows.
        """
        return self._read(tokens, self._behind(tokens))

    def _behind(self, tokens: Tensor) -> dict[str, Any]:
        """A copy of the cache for each prompt."""
        if self.length + tokens.shape[1] > self.lm.max_ctx:
            raise ConfigError(
                f"Prompts of {self.length + tokens.shape[1]} tokens are longer than "
                f"{self.lm.name} allows ({self.lm.max_ctx})."
            )
        cache = copy.deepcopy(self._cache)
        for of_model in cache.values():
            of_model.batch_repeat_interleave(len(tokens))
        return cache

    @torch.no_grad()
    def _read(self, tokens: Tensor, cache: dict[str, Any]) -> Tensor:
        check_embedded(tokens, self.lm.model, self.lm.tokenizer, self.lm.name)
        with self.lm.hooked({}):  # passes of other threads wait
            ids = tokens.to(self.lm.device, torch.long)
            return self.lm.model(ids, use_cache=True, **cache).logits
