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
from sae.language.prefix import Prefix
from sae.provenance import content_key

_LAST = 6
"""Tokens at the end that are read for each context; what stands before is read once if shared."""


class LMReader:
    """Runs the LM up to the dictionary, and the dictionary on one row of each context.

    Contexts that begin alike share the pass over their beginning. What was read is kept in the
    cache. A row that does not count has no activation.

    Args:
        one: The dictionary at its place.
        lm: The LM.
    """

    def __init__(self, one: PlacedSAE, lm: LanguageModel):
        assert one.ends is not None, "what reads text has a place in an LM"
        self.one, self.lm = one, lm
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

    def cost(self, tokens: Int[np.ndarray, "n ctx"], at: Int[np.ndarray, " n"]) -> int:
        """See `Reader`."""
        groups = _by_prefix(tokens, at)
        return sum(start + len(rows) * int(at[rows[0]] + 1 - start) for start, rows in groups)

    @torch.no_grad()
    def _read(self, name: str, tokens: np.ndarray, at: np.ndarray) -> np.ndarray:
        found = np.zeros(len(at))
        ids = torch.from_numpy(tokens.astype(np.int64))
        for start, rows in _by_prefix(tokens, at):
            prefix = Prefix(self.lm, ids[rows[0], :start], self._points)
            behind = ids[rows, start : at[rows[0]] + 1]
            seen = prefix.capture(behind)
            x = [seen[point][:, -1] for point in self._points]
            found[rows] = self._codes(x, behind[:, -1], name).double().cpu().numpy()
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

    def cost(self, tokens: Int[np.ndarray, "n ctx"], at: Int[np.ndarray, " n"]) -> int:
        """None: the token says it."""
        return 0


def _by_prefix(
    tokens: Int[np.ndarray, "n ctx"], at: Int[np.ndarray, " n"]
) -> list[tuple[int, list[int]]]:
    """Contexts that begin alike: the length of what they share, and their numbers.

    What is asked about stands at the same position in all of them. The `_LAST` tokens before it
    may differ.
    """
    groups: dict[tuple[int, bytes], list[int]] = {}
    for i, end in enumerate(at.tolist()):
        start = max(1, end - _LAST)
        groups.setdefault((end, tokens[i, :start].tobytes()), []).append(i)
    return [(max(1, end - _LAST), rows) for (end, _), rows in groups.items()]
