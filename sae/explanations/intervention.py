"""Intervention: whether what an LM writes under a push makes the explanation likelier to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae.explanations import pushed
from sae.explanations.explainers import Explanation
from sae.explanations.latents import Latent
from sae.explanations.log_probs import Asked, LogProbs
from sae.explanations.means import mean
from sae.explanations.pushed import Pushes
from sae.explanations.scores import Scores
from sae.explanations.study import Row
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Type

_QUESTION = "\n\nQuestion: What does the text above have too much of?\nAnswer:"
_ASKED = pushed.NEW_TOKENS + 45
"""Tokens of a text with the question and an explanation, about."""
TOKENS = pushed.TOKENS + 5 * pushed.OPENINGS * _ASKED
"""Tokens that an explanation and a wrong one take, about."""
ENDS = ("", "_low", "_high")
PUSHED: dict[str, tuple[Type, str]] = {
    "subject": ("string", ""), "explainer": ("string", ""), "latents": ("int64", ""),
    **{f"{name}{end}": ("float64", "nats") for name in (
        "rise", "random", "deranged", "over_random", "over_deranged",
    ) for end in ENDS},
}  # fmt: skip


class Intervention:
    """Rise of the log-probability of the explanation, from clean text to pushed text, in nats.

    The LM writes after neutral openings while the decoder row of the latent is added, as long as
    makes the mean KL of its predictions 1 nat. The clean LM then says how likely the explanation is
    as the answer to what the text has too much of: mean over openings of
    log p(explanation | pushed text) - log p(explanation | clean text). Control: a random direction
    at the same KL.

    Source: the intervention scorer of delphi (Paulo et al. 2024, arXiv 2410.13928, 3.3.5). The
    question is our own.

    Args:
        log_probs: Log-probabilities by the clean LM.
        pushes: Writes; None: nothing is scored.
        spent: Gets the number of tokens that were read and written, about.
    """

    def __init__(self, log_probs: LogProbs, pushes: Pushes | None, spent: Callable[[int], object]):
        self._log_probs, self._pushes, self._spent = log_probs, pushes, spent

    def score(
        self, latent: Latent, seed: int, text: Explanation, without: Latent | None = None
    ) -> Scores:
        """The rise under the latent and under the random direction; NaN if 1 nat is not reached.

        Args:
            latent: The latent that is pushed.
            seed: Not used: the openings are the same for all.
            text: The explanation.
            without: The latent that the explanation is of, if it is a wrong one; its rise under
                the random direction is not asked for.
        """
        if self._pushes is None:
            return Scores()
        texts = self._pushes.texts(latent.name)
        if texts.made:
            self._spent(pushed.TOKENS)
        found = {"intervention": self.rise(text.words, texts.own)}
        if without is None:
            found["intervention_random"] = self.rise(text.words, texts.random)
        return Scores(found)

    def rise(self, words: str, texts: Sequence[Sequence[int]] | None) -> float:
        """Mean over openings of the difference of log-probabilities, in nats; NaN without texts."""
        if texts is None or self._pushes is None:
            return float("nan")
        return float(np.mean([
            self._log_p(words, one) - self._log_p(words, clean)
            for one, clean in zip(texts, self._pushes.clean, strict=True)
        ]))  # fmt: skip

    def _log_p(self, words: str, text: Sequence[int]) -> float:
        """Log-probability of the explanation behind a text, summed over its tokens."""
        judge = self._log_probs.judge
        answer = tuple(judge.ids(f" {words}"))
        asked = Asked(answer, tuple(range(len(answer))))
        (found,) = self._log_probs.of([*text, *judge.ids(_QUESTION)], [asked])
        return float(found.sum())


def pushed_rows(
    studies: Mapping[str, Sequence[Row]], bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    """A row for each dictionary and explainer whose latents were pushed: means over latents."""
    for subject, rows in studies.items():
        for explainer in dict.fromkeys(row.explainer for row in rows):
            own, random, wrong = (
                np.array([
                    row.values.get(f"intervention{part}", np.nan)
                    for row in rows if row.explainer == explainer
                ])
                for part in ("", "_random", "_deranged")
            )  # fmt: skip
            parts = {
                "rise": own, "random": random, "deranged": wrong, "over_random": own - random,
                "over_deranged": own - wrong,
            }  # fmt: skip
            if np.isfinite(own).any():
                yield {
                    "subject": subject, "explainer": explainer,
                    "latents": int(np.isfinite(own).sum()),
                    **{f"{name}{end}": value for name, values in parts.items()
                       for end, value in zip(ENDS, mean(values, bootstrap), strict=True)},
                }  # fmt: skip
