"""Intervention: whether what an LM writes under a push makes the explanation likelier to it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from sae.explanations import pushed
from sae.explanations.explainers import Explanation
from sae.explanations.latents import Latent
from sae.explanations.log_probs import Asked, LogProbs
from sae.explanations.means import Interval, difference, mean, over_seeds
from sae.explanations.pushed import Pushes
from sae.explanations.scores import Scores
from sae.explanations.study import Row
from sae.explanations.summary import SAE, enough, named, values_of
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Type

_QUESTION = "\n\nQuestion: What does the text above have too much of?\nAnswer:"
_ASKED = pushed.NEW_TOKENS + 45
"""Tokens of a text with the question and an explanation, about."""
TOKENS = 4 * pushed.OPENINGS * _ASKED
"""Tokens that an explanation and another latent's take, about."""
OVER = ("over_random", "over_deranged")
"""Rise of own words less that under a random direction, and less that of another latent's."""
PUSHED: dict[str, tuple[Type, str]] = {
    "subject": ("string", ""), "explainer": ("string", ""), "latents": ("int64", ""),
    "seeds": ("int64", ""),
    **{f"{name}{end}": ("float64", "nats") for name in (
        "rise", "random", "deranged", *OVER, *(f"sae_less_this_{name}" for name in OVER),
    ) for end in ("", "_low", "_high")},
    **{f"{name}_seed{end}": ("float64", "nats") for name in OVER for end in ("_low", "_high")},
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
        pushes: Writes; its tokens are spent from the budget of `log_probs`.
    """

    def __init__(self, log_probs: LogProbs, pushes: Pushes):
        self._log_probs, self._pushes = log_probs, pushes

    def score(
        self, latent: Latent, seed: int, text: Explanation, without: Latent | None = None
    ) -> Scores:
        """The rise under the latent and under the random direction; NaN if 1 nat is not reached.

        Args:
            latent: The latent that is pushed.
            seed: Not used: the openings are the same for all.
            text: The explanation.
            without: The latent that the explanation is of, if it is another one; the rise under
                the random direction is not asked for then.
        """
        texts = self._pushes.texts(latent.name)
        self._log_probs.budget.spend(texts.tokens)
        found = {"intervention": self.rise(text.words, texts.own)}
        if without is None:
            found["intervention_random"] = self.rise(text.words, texts.random)
        return Scores(found)

    def rise(self, words: str, texts: Sequence[Sequence[int]] | None) -> float:
        """Mean over openings of the difference of log-probabilities, in nats; NaN without texts."""
        if texts is None:
            return float("nan")
        found = self._log_ps(words, [*texts, *self._pushes.writing.clean])
        return float(np.mean(found[: len(texts)] - found[len(texts) :]))

    def _log_ps(
        self, words: str, texts: Sequence[Sequence[int]]
    ) -> Float[np.ndarray, " texts"]:  # fmt: skip
        """Log-probabilities of the explanation behind texts, summed over its tokens."""
        judge = self._log_probs.judge
        question, answer = judge.ids(_QUESTION), judge.ids(f" {words}")
        rows = []
        for text in texts:
            before = (*text[1:], *question)  # all texts begin with the separator
            at = range(len(before), len(before) + len(answer))
            rows.append(Asked((*before, *answer), tuple(at)))
        return np.array([found.sum() for found in self._log_probs.of(texts[0][:1], rows)])


def pushed_rows(
    studies: Mapping[str, Sequence[Row]], bootstrap: Bootstrap
) -> Iterator[dict[str, Any]]:
    """A row for each dictionary and explainer whose latents were pushed: means over latents.

    Intervals are over the latents of all seeds; those over seeds are as in `by_subject`. Where the
    SAE is compared with another dictionary by the same explainer, the latents of both are drawn
    again. How often they fire is not matched: bases as they are have no rare latents. With fewer
    than 10 latents there is no interval and no comparison: a bootstrap of so few is too narrow.
    """
    for subject, rows in studies.items():
        for explainer in dict.fromkeys(row.explainer for row in rows):
            own = [row for row in rows if row.explainer == explainer]
            parts = _parts(own)
            if not np.isfinite(parts["rise"]).any():
                continue
            seed = np.array([row.seed for row in own])
            found: dict[str, Any] = {
                "subject": subject, "explainer": explainer,
                "latents": int(np.isfinite(parts["rise"]).sum()),
                "seeds": len(np.unique(seed[np.isfinite(parts["rise"])])),
            }  # fmt: skip
            for name, values in parts.items():
                average = mean(values, bootstrap)
                found |= named(name, average if enough(values) else Interval(average.value))
            ours = _parts([row for row in studies[SAE] if row.explainer == explainer])
            for name in OVER:
                of_seeds = [parts[name][seed == one] for one in np.unique(seed)]
                means = [float(np.nanmean(own)) for own in of_seeds if enough(own)]
                found |= over_seeds(f"{name}_seed", found[name], means, bootstrap)
                if subject != SAE and enough(ours[name]) and enough(parts[name]):
                    gap = difference(ours[name], parts[name], bootstrap)
                    found |= named(f"sae_less_this_{name}", gap)
            yield found


def _parts(rows: Sequence[Row]) -> dict[str, Float[np.ndarray, " latents"]]:
    """Rises of latents, and how far they are above both controls; NaN where undefined."""
    own, random, wrong = (
        values_of(rows, f"intervention{part}") for part in ("", "_random", "_deranged")
    )
    return {
        "rise": own, "random": random, "deranged": wrong, "over_random": own - random,
        "over_deranged": own - wrong,
    }  # fmt: skip
