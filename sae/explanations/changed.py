"""Activations of latents on changed text: an LM and an SAE read it, or the token says it."""

from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import functional
from sae.artifacts.placed import PlacedSAE
from sae.cached import cached
from sae.explanations.latents import index_of
from sae.features.firings import sides
from sae.features.sets import sae_key
from sae.language.lm import LanguageModel
from sae.provenance import content_key

_PASS_TOKENS = 1024


class LMReader:
    """Runs the LM up to the dictionary, and the dictionary on one row of each context.

    What was read is kept in the cache. A row that does not count has no activation.

    Args:
        one: The dictionary at its place.
        lm: The LM.
        pass_tokens: Tokens in a pass; decides memory.
    """

    def __init__(self, one: PlacedSAE, lm: LanguageModel, pass_tokens: int = _PASS_TOKENS):
        assert one.ends is not None, "what reads text has a place in an LM"
        self.one, self.lm, self.pass_tokens = one, lm, pass_tokens
        self._points = one.ends.points

    @cached_property
    def _key(self) -> str:
        """Changes when the activations do."""
        counted = self.one.counted
        return content_key({
            "sae": sae_key(self.one), "lm": dict(self.lm.identity), "dtype": str(self.lm.dtype),
            "ends": str(self.one.ends), "counted": counted and counted.to_json(),
        })  # fmt: skip

    def read(
        self, name: str, tokens: Int[np.ndarray, "n ctx"], at: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """See `Reader`."""
        if not len(at):
            return np.zeros(0)
        read = [one[: end + 1].tolist() for one, end in zip(tokens, at.tolist(), strict=True)]
        identity = {
            "reader": self._key, "latent": name, "count": len(at),
            "contexts": sha256(repr(read).encode()).hexdigest(),
        }  # fmt: skip

        def make():
            return {"activations": torch.from_numpy(self._read(name, tokens, at))}, None

        return cached("changed_texts/", identity, make)[0]["activations"].numpy()

    def cost(self, at: Int[np.ndarray, " n"]) -> int:
        """See `Reader`; about, since a pass is as long as its longest context."""
        return int((at + 1).sum())

    @torch.no_grad()
    def _read(self, name: str, tokens: np.ndarray, at: np.ndarray) -> np.ndarray:
        found = np.zeros(len(at))
        order = np.argsort(at, kind="stable")
        while len(order):
            longest = int(at[order[-1]]) + 1
            part = order[-max(1, self.pass_tokens // longest) :]
            order = order[: -len(part)]
            ids = torch.from_numpy(tokens[part, :longest].astype(np.int64))
            seen = self.lm.capture(ids, self._points)
            rows, here = torch.arange(len(part)), torch.from_numpy(at[part].astype(np.int64))
            x = [seen[point][rows, here.to(seen[point].device)] for point in self._points]
            found[part] = self._codes(x, ids[rows, here], name).double().cpu().numpy()
        return found

    def _codes(self, parts: list[Tensor], tokens: Tensor, name: str) -> Tensor:
        sae, counted = self.one.sae, self.one.counted
        x, _ = functional.input_and_target(torch.cat(parts, dim=-1).to(sae.device), sae.d_in)
        f = sides(sae, sae.encode(x).float())[:, index_of(name, sae.d_sae)]
        if counted is not None:
            f = f * counted.at(self._points).mask(parts, tokens).to(f)
        return f


class TokenReader:
    """Classes of tokens that play latents: one fires with 1 on its tokens. No LM is asked.

    Args:
        tokens: Mask over the vocabulary, or a token, by the name of the latent.
    """

    def __init__(self, tokens: Mapping[str, Bool[np.ndarray, " vocab"] | int]):
        self._tokens = tokens

    def read(
        self, name: str, tokens: Int[np.ndarray, "n ctx"], at: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """See `Reader`."""
        here, own = tokens[np.arange(len(at)), at], self._tokens[name]
        return (here == own if isinstance(own, int) else own[here]).astype(np.float64)

    def cost(self, at: Int[np.ndarray, " n"]) -> int:
        """None: the token says it."""
        return 0
