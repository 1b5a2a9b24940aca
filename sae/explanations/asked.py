"""Explainers that ask a chat LM about contexts of the training text."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from sae.chat.desk import Desk
from sae.chat.messages import Reply, Request
from sae.explanations import prompts
from sae.explanations.excerpts import MARKED_FROM, SIZES
from sae.explanations.explainers import EXPLAINERS, Explainer, Explanation, Unexplained
from sae.explanations.latents import Latent
from sae.explanations.scores import LEAST
from sae.language.pieces import pieces, visible

_STRONGEST, _SPREAD = 10, 10
_TOP = 5
_FRAGMENT = 32
"""Tokens on each side of a peak: fragments of about 64 tokens, as Bills et al. show."""


class ChatExplainer(Explainer):
    """Asks once for each latent."""

    def explained(
        self, latents: Sequence[Latent], desk: Desk | None
    ) -> list[Explanation | Unexplained]:
        """Explanations; latents with too few contexts are not asked about and get `failed`."""
        assert desk is not None, "evaluations give a desk to explainers that need one"
        able = [i for i, one in enumerate(latents) if len(self.text.peaks(one)) >= LEAST]
        replies = desk.ask(f"explain by {self.name}", [self.request(latents[i]) for i in able])
        found: list[Explanation | Unexplained] = ["failed"] * len(latents)
        for i, reply in zip(able, replies, strict=True):
            found[i] = self._read(reply) if isinstance(reply, Reply) else reply
        return found

    def _read(self, reply: Reply) -> Explanation | Unexplained:
        words = None if reply.refuses else self.parse(reply.text)
        if words is None:
            return "refused" if reply.refuses else "unparsed"
        return Explanation(words)

    @abstractmethod
    def request(self, latent: Latent) -> Request:
        """The question about a latent that fires in at least 20 contexts."""

    @abstractmethod
    def parse(self, reply: str) -> str | None:
        """The explanation in a reply; None if it holds none."""

    def _activations(self, latent: Latent) -> Float[np.ndarray, " places"]:
        found = np.zeros(len(self.text.of.tokens))
        found[latent.train.row] = latent.train.value
        return found

    def _words(self, start: int, stop: int) -> list[str]:
        """The tokens from one place to another, as a list shows them."""
        of = self.text.of
        return [visible(word) for word in pieces(of.tokens[start:stop].tolist(), of.vocabulary)]


@EXPLAINERS.register("contexts")
class Contexts(ChatExplainer):
    """Shows marked excerpts, the strongest ones and some of all strengths (as delphi does)."""

    def request(self, latent: Latent) -> Request:
        """Excerpts of ±16 tokens, with the strengths of the marked tokens."""
        of, values = self.text.of, self._activations(latent)
        places = _spread(self.text.peaks(latent))
        shown = []
        for place, start, stop in zip(places, *of.bounds(places, SIZES["whole"]), strict=True):
            on = np.zeros(len(values), bool)
            part = values[start:stop]
            on[start:stop] = part >= max(MARKED_FROM * part.max(), 1e-30)
            scaled = np.ceil(10 * part / values.max()).astype(int)
            words = self._words(int(start), int(stop))
            strengths = [(words[i].strip(), int(scaled[i])) for i in np.flatnonzero(on[start:stop])]
            text = of.marked_excerpt(int(place), SIZES["whole"], on)
            shown.append((" ".join(text.split()), strengths))
        return prompts.of_contexts(shown)

    def parse(self, reply: str) -> str | None:
        """The phrase behind `[EXPLANATION]:`."""
        return prompts.in_contexts(reply)


@EXPLAINERS.register("token_pairs")
class TokenPairs(ChatExplainer):
    """Shows tokens with activations of 0 to 10 of the strongest fragments (Bills et al. 2023)."""

    def request(self, latent: Latent) -> Request:
        """Five fragments; activations are rounded down."""
        of, values = self.text.of, self._activations(latent)
        scaled = np.floor(10 * values / values.max()).astype(int)
        bounds = zip(*of.bounds(self.text.peaks(latent)[:_TOP], _FRAGMENT), strict=True)
        return prompts.of_pairs([
            list(zip(self._words(int(a), int(b)), scaled[a:b].tolist(), strict=True))
            for a, b in bounds
        ])  # fmt: skip

    def parse(self, reply: str) -> str | None:
        """The phrase that ends the sentence."""
        return prompts.in_pairs(reply)


def _spread(peaks: Int[np.ndarray, " contexts"]) -> Int[np.ndarray, " n"]:
    """The first peaks, and some of the rest at equal distances.

    Example:
        >>> _spread(np.arange(100))[-3:].tolist()
        [79, 89, 99]
    """
    rest = peaks[_STRONGEST:]
    chosen = np.linspace(0, len(rest) - 1, min(_SPREAD, len(rest))).round().astype(int)
    return np.concatenate([peaks[:_STRONGEST], rest[chosen]])
