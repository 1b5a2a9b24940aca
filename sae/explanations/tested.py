"""Rules that changed texts test: a scorer of them, and an explainer that proposes and tests."""

from collections.abc import Sequence

import numpy as np

from sae.chat.desk import Desk
from sae.explanations.budget import Budget
from sae.explanations.counterfactual import PLACES, Counterfactuals, Trial
from sae.explanations.explainers import EXPLAINERS, Explainer, Explanation, Unexplained
from sae.explanations.latents import Latent, Reader
from sae.explanations.scores import Scores
from sae.progress import progress

TESTED = "tested"
CANDIDATES = 3
"""Rules of largest F1 that are tested for each latent."""
_PLACES = 8
"""Places on either side of each of these tests."""


class RuleTest:
    """Necessity and sensitivity of the rule that an explanation is, with their controls.

    Args:
        on: Changes the test text.
        reader: Gives activations on changed text.
        budget: Gets the number of tokens that were read.
    """

    def __init__(self, on: Counterfactuals, reader: Reader, budget: Budget):
        self._on, self._reader, self._budget = on, reader, budget

    def score(
        self, latent: Latent, seed: int, text: Explanation, without: Latent | None = None
    ) -> Scores:
        """Scores of a latent's rule; of another latent's rule the sensitivity alone.

        Where another latent's rule does not hold, nothing can be made false.

        Args:
            latent: The latent.
            seed: Its seed, which decides the places.
            text: The explanation; NaN if it is no rule about tokens.
            without: The latent that the explanation is of, if it is another one.
        """
        if without is not None:
            found, tokens = self._on.sensitivity(latent, seed, text.rule, self._reader)
            self._budget.spend(tokens)
            return Scores({"sensitivity": found})
        trial = self._on.trial(latent, seed, text.rule, self._reader)
        self._budget.spend(trial.tokens)
        return Scores({
            "necessity": trial.necessity, "necessity_silent": trial.silenced,
            "necessity_same": trial.same, "necessity_near": trial.near,
            "sensitivity": trial.sensitivity, "sensitivity_random": trial.random,
            "falsified": np.nan if trial.falsified is None else float(trial.falsified),
        })  # fmt: skip


def tokens_of(ctx: int) -> int:
    """Tokens that the LM reads for an explanation and another latent's, about."""
    return PLACES * (3 * ctx // 2 + 6 * 6)


def tokens_of_round(ctx: int) -> int:
    """Tokens that the LM reads to test the rules that may explain a latent, about.

    Rules share what stands before their silent places, and 7 tokens of each change are new.
    """
    return _PLACES * ((CANDIDATES + 1) * (ctx // 2) + CANDIDATES * 5 * 7)


@EXPLAINERS.register(TESTED)
class Tested(Explainer):
    """The rule that stands the tests best, of the three of largest F1 on the training text.

    Each is tested by changed training text (`Counterfactuals`). A rule weighs the harmonic mean of
    its F1 and of necessity and sensitivity less their controls; 0 if one of them is not above 0.
    The first stays where none weighs anything, and where no single token decides about it: such a
    rule cannot be tested.

    Source: the rounds of SAGE (arXiv 2511.20820), which an LLM runs.
    """

    def explained(
        self, latents: Sequence[Latent], desk: Desk | None
    ) -> list[Explanation | Unexplained]:
        """The explanations; `failed` where there is no rule, `unasked` once the budget is spent."""
        on = Counterfactuals(self.text.rules)
        found: list[Explanation | Unexplained] = []
        with progress("test rules", len(latents), "latents") as advance:
            for latent in latents:
                if self.budget.left:
                    found.append(self._best(on, latent) or "failed")
                else:
                    found.append("unasked")
                advance(1)
        return found

    def _best(self, on: Counterfactuals, latent: Latent) -> Explanation | None:
        assert self.reader is not None, "evaluations give a reader to explainers that need one"
        rules, text = self.text.rules.best(latent.train.row, CANDIDATES), self.text.rules
        if not rules:
            return None
        best, largest = rules[0], 0.0
        if text.deciding(best) is not None:
            trials = on.trials(latent, latent.seed, rules, self.reader, _PLACES)
            self.budget.spend(sum(trial.tokens for trial in trials))
            for rule, trial in zip(rules, trials, strict=True):
                found = weight(text.fit(rule, latent.train.row).f1, trial)
                if found > largest:
                    best, largest = rule, found
        return Explanation(best.words, best)


def weight(f1: float, trial: Trial) -> float:
    """Harmonic mean of F1 and both margins of a test; 0 if one is undefined or not above 0.

    Example:
        >>> weight(0.5, Trial(0.9, 1.0, 0.0, 0.4, 0.5, 0.0))
        0.5
    """
    parts = np.array([f1, *trial.margins])
    return float(len(parts) / (1 / parts).sum()) if (parts > 0).all() else 0.0
