"""Surprisal: how much likelier an LM finds excerpts once it has read the explanation."""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Bool, Int

from sae.explanations.excerpts import SIZES, marked
from sae.explanations.explainers import Explanation
from sae.explanations.latents import Latent
from sae.explanations.log_probs import Asked, LogProbs
from sae.explanations.scores import LEAST, LEAST_POSITIVES, Bench, Scores, auroc
from sae.features.record import DECILES

PER_DECILE = 2
"""Excerpts from each decile of a latent's activations, of those that `Bench.drawn` draws."""
NEGATIVES = LEAST
"""Excerpts without the latent, and hard ones: the first of the pool in an order that all share."""
UNEXPLAINED = "Various unrelated sentences."
"""The description that stands for none (delphi's)."""
PROMPT = (
    "The following is a description of a feature of text, and sentences that contain the feature."
    "\n\nDescription: {}\n\nSentences:\n\n"
)
SIDE = SIZES["whole"]
TOKENS = (2 * PER_DECILE * DECILES + 3 * NEGATIVES) * (2 * SIDE + 2) + 150
"""Tokens that an explanation and another latent's take, about."""


class Surprisals(ABC):
    """AUROC of the rise of the log-likelihood, where the latent fires against elsewhere.

    The rise of an excerpt x_1 … x_n is mean_t [log p(x_t | prompt with the explanation, x_<t)
    - log p(x_t | prompt with `UNEXPLAINED`, x_<t)], in nats a token.

    Source: the surprisal scorer of delphi (Paulo et al. 2024, arXiv 2410.13928, 3.3.3), whose
    prompt holds worked examples before the description. Ours holds none.

    Args:
        bench: Source of the excerpts.
    """

    tokens = TOKENS

    def __init__(self, bench: Bench):
        self._bench = bench
        self._order = np.random.default_rng([bench.seed, 2]).permutation(bench.pool)

    def score(
        self, latent: Latent, seed: int, text: Explanation, without: Latent | None = None
    ) -> Scores:
        """Scores of an explanation of a latent; NaN where there are too few excerpts.

        Args:
            latent: The latent.
            seed: Its seed, which decides the excerpts.
            text: The explanation.
            without: Excerpts in which this latent fires are left out: the explanation is of it.
        """
        places, decile = self._bench.drawn(latent.test, seed)
        first = np.concatenate([np.flatnonzero(decile == i)[:PER_DECILE] for i in range(DECILES)])
        places, decile = places[first], decile[first]
        silent = ~self._fires(latent.test.row, self._order)
        if without is not None:
            kept = ~self._fires(without.test.row, places)
            places, decile = places[kept], decile[kept]
            silent &= ~self._fires(without.test.row, self._order)
        negative = self._order[silent][:NEGATIVES]
        hard = np.zeros(0, np.int64)
        if without is None and latent.partners is not None:
            hard = self._order[silent & self._fires(latent.partners, self._order)][:NEGATIVES]
        parts = {"surprisal": negative, "surprisal_hard": hard}
        there = {name: some for name, some in parts.items() if len(some) >= LEAST}
        found = Scores(values=dict.fromkeys(parts, np.nan))
        if without is not None:
            del found.values["surprisal_hard"]
        if len(places) < LEAST_POSITIVES or not there:
            return found
        rises = self.rises(text.words, np.concatenate([places, *there.values()]))
        if not np.isfinite(rises).all():  # the LM overflowed: ranks of NaN would be a score
            return found
        ends = np.cumsum([len(places), *map(len, there.values())])
        positive, *others = np.split(rises, ends[:-1])
        for name, some in zip(there, others, strict=True):
            found.values[name] = auroc(positive, some)
        if without is None and "surprisal" in there:
            found.deciles["surprisal"] = np.array([
                auroc(own, others[0]) if len(own := positive[decile == i]) else np.nan
                for i in range(DECILES)
            ])  # fmt: skip
        return found

    def rises(self, words: str, middle: Int[np.ndarray, " n"]) -> np.ndarray:
        """Rise of the mean log-likelihood of the excerpts around places, in nats a token."""
        explained, plain = (
            self.likelihoods(PROMPT.format(description), middle)
            for description in (words, UNEXPLAINED)
        )
        return explained - plain

    @abstractmethod
    def likelihoods(self, prompt: str, middle: Int[np.ndarray, " n"]) -> np.ndarray:
        """Mean log-likelihood of the excerpts around places behind a prompt, in nats a token."""

    def _fires(
        self, rows: Int[np.ndarray, " places"], middle: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """True where one of the places lies in the excerpt around a place."""
        return self._bench.text.any_within(marked(self._bench.text, rows), middle, SIDE)


class Surprisal(Surprisals):
    """`Surprisals` by an LM of this process, which reads token ids.

    Args:
        log_probs: The judge's log-probabilities.
        bench: Source of the excerpts.
    """

    def __init__(self, log_probs: LogProbs, bench: Bench):
        super().__init__(bench)
        self._log_probs = log_probs

    def likelihoods(self, prompt: str, middle: Int[np.ndarray, " n"]) -> np.ndarray:
        """See `Surprisals`."""
        judge, text = self._log_probs.judge, self._bench.text
        rows = []
        for start, stop in zip(*text.bounds(middle, SIDE), strict=True):
            ids = tuple(i for i in text.tokens[start:stop].tolist() if i not in text.special)
            rows.append(Asked(ids, tuple(range(len(ids)))))
        found = self._log_probs.of([judge.separator, *judge.ids(prompt)], rows)
        return np.array([one.mean() for one in found])
