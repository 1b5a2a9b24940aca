"""Narrow scorers: a causal LM reads explanations of as many latents as a budget pays for."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from sae.chat.desk import Desk
from sae.errors import ConfigError
from sae.explanations import intervention
from sae.explanations.counterfactual import Counterfactuals
from sae.explanations.explainers import Explanation, Unexplained
from sae.explanations.intervention import Intervention
from sae.explanations.latents import Latent, Subject, stratified
from sae.explanations.log_probs import LMJudge, LogProbs
from sae.explanations.rules import RuleText
from sae.explanations.scores import Bench, Scores, next_in_circle
from sae.explanations.served import TIMES, ServedSimulation, ServedSurprisal
from sae.explanations.simulation import Simulation, scale_of
from sae.explanations.study import Row
from sae.explanations.surprisal import Surprisal
from sae.explanations.tested import RuleTest, tokens_of, tokens_of_round
from sae.progress import progress

log = logging.getLogger(__name__)
Scorer = Literal["surprisal", "simulation", "counterfactual", "intervention"]
Words = Mapping[str, Sequence[Explanation | Unexplained]]


@runtime_checkable
class NarrowScorer(Protocol):
    """Scores explanations by an LM."""

    def score(
        self, latent: Latent, seed: int, text: Explanation, without: Latent | None = None
    ) -> Scores:
        """Scores of an explanation of a latent."""
        ...


SCORERS: dict[Scorer, Callable[[LogProbs, Bench], NarrowScorer]] = {
    "surprisal": Surprisal, "simulation": Simulation,
}  # fmt: skip
"""Scorers by the LM's log-probabilities."""
SERVED: dict[Scorer, Callable[[Desk, Bench], NarrowScorer]] = {
    "surprisal": ServedSurprisal, "simulation": ServedSimulation,
}  # fmt: skip
"""The same by a server's."""
TOKENS: dict[Scorer, int] = {
    "surprisal": Surprisal.tokens, "simulation": Simulation.tokens,
    "intervention": intervention.TOKENS,
}  # fmt: skip


class Narrow:
    """The narrow scorers that are asked for, with what the judge may read.

    Args:
        judge: The LM.
        scorers: Their names.
        budget: Tokens that the judge may read.
        rules: The test text with its properties, which `counterfactual` needs.
        desk: Asks the server that reads for surprisal and simulation; None: the LM reads.
    """

    def __init__(
        self, judge: LMJudge, scorers: Sequence[Scorer], budget: int,
        rules: RuleText | None = None, desk: Desk | None = None,
    ):  # fmt: skip
        self.log_probs, self.desk = LogProbs(judge), desk
        self.scorers, self.budget = list(dict.fromkeys(scorers)), budget
        self._changed = None if rules is None else Counterfactuals(rules)
        self._tokens = TOKENS | ({} if rules is None else {
            "counterfactual": tokens_of(rules.text.ctx)
        })  # fmt: skip
        self._tokens_of_round = 0 if rules is None else tokens_of_round(rules.text.ctx)
        if desk is not None:
            self._tokens |= {name: TIMES * TOKENS[name] for name in SERVED}
        self.latents: dict[Scorer, int] = {}
        """Latents of each dictionary that each scorer reads the explanations of."""
        self.tested = 0
        """Latents whose rules the explainer `tested` tests."""
        self.constant = 0
        """Simulations that were constant; their correlation counts as 0."""

    @property
    def reads(self) -> bool:
        """True if the LM is asked for anything."""
        return bool(self.scorers or self.tested)

    @contextmanager
    def bar(self) -> Iterator[None]:
        """Show what the judge reads while the block runs."""
        if not self.reads:
            yield
            return
        with progress("judge LM", self.budget) as self.log_probs.advance:
            yield

    def plan(self, classes: int, explanations: Mapping[Scorer, int], tested: int = 0) -> None:
        """Divide the budget of tokens: tests by explainers and known classes first.

        What is left is divided equally among the scorers.

        Args:
            classes: Number of classes of known meaning, with one explanation each.
            explanations: Number of explanations that each scorer reads if each dictionary has one
                latent.
            tested: See the attribute.

        Raises:
            ConfigError: If the budget is too small for two latents of each dictionary.
        """
        if self.desk is not None:  # it stops there
            self.budget = min(self.budget, self.desk.budget)
        self.tested = tested
        first = classes * sum(self._tokens[name] for name in self.scorers if name in TOKENS)
        first += tested * self._tokens_of_round
        each = {name: explanations[name] * self._tokens[name] for name in self.scorers}
        for name in self.scorers:
            self.latents[name] = (self.budget - first) // len(self.scorers) // each[name]
        # another latent's explanation is needed
        least = first + 2 * len(self.scorers) * max(each.values(), default=0)
        if self.budget < first or min(self.latents.values(), default=2) < 2:
            what = [f"tests of rules of {tested} latents"] if tested else []
            if self.scorers:
                what.append(
                    f"{classes} known classes and 2 latents of each dictionary by "
                    f"{', '.join(self.scorers)}"
                )
            raise ConfigError(
                f"eval.autointerp.lm_tokens={self.budget:,} is too little: {' and '.join(what)} "
                f"take about {least:,} tokens. Give more, or fewer scorers or latents."
            )
        if self.desk is not None and set(self.scorers) & set(SERVED):
            log.info(
                "%s will read up to about %s more tokens for log-probabilities (lm_tokens).",
                self.desk.client.identity["model"], f"{self.budget:,}",
            )  # fmt: skip

    def read(
        self, subject: Subject, words: Words, bench: Bench, rows: Sequence[Row],
        every: bool = False,
    ) -> list[Row]:  # fmt: skip
        """Rows of a dictionary with the narrow scores added.

        Latents are taken equally many from each bin of density; a bin with fewer gives all.

        Args:
            subject: The dictionary.
            words: The explanations that are read, by explainer; latents have one by the first.
            bench: Source of the excerpts.
            rows: Rows from `study`, of all explainers.
            every: True if all latents are read, whatever the budget: they are known classes.
        """
        first = next(iter(words))
        able = [
            i for i, row in enumerate(row for row in rows if row.explainer == first)
            if row.state == "explained"
        ]  # fmt: skip
        density = np.array([subject.latents[i].density for i in able])
        found: dict[tuple[str, str], list[Scores]] = {}
        for name in self.scorers:
            count = len(able) if every else self.latents[name]
            chosen = [able[k] for k in stratified(density, count)]
            scorer = self._scorer(name, subject, bench)
            for explainer, texts in words.items():
                for latent, scores in _scored(scorer, subject, chosen, texts):
                    found.setdefault((explainer, latent), []).append(scores)
        return [self._with(row, found.get((row.explainer, row.latent), ())) for row in rows]

    def _scorer(self, name: Scorer, subject: Subject, bench: Bench) -> NarrowScorer:
        if self.desk is not None and name in SERVED:
            return SERVED[name](self.desk, bench)
        if name in SCORERS:
            return SCORERS[name](self.log_probs, bench)
        if name == "intervention":
            return Intervention(self.log_probs, subject.pushes, self.log_probs.spent)
        assert self._changed is not None, "evaluations give the test text's properties"
        return RuleTest(self._changed, subject.reader, self.log_probs.spent)

    def facts(self) -> dict[str, Any]:
        """Tokens and latents that the judge read, plain JSON values."""
        facts: dict[str, Any] = {
            "budget": self.budget, "tokens": self.log_probs.count, "latents": self.latents,
            "tested": self.tested, "constant simulations": self.constant,
        }  # fmt: skip
        if self.desk is not None:
            facts["server"] = dict(self.desk.client.identity)
        if "simulation" in self.scorers:
            facts["scale"] = 9 if self.desk else scale_of(self.log_probs.judge).top
        return facts

    def _with(self, row: Row, scores: Sequence[Scores]) -> Row:
        values, deciles = dict(row.values), dict(row.deciles)
        for one in scores:
            values |= one.values
            deciles |= one.deciles
        self.constant += int(values.pop("simulation_constant", 0))
        return row._replace(values=values, deciles=deciles)


def _scored(
    scorer: NarrowScorer, subject: Subject, chosen: Sequence[int],
    texts: Sequence[Explanation | Unexplained],
) -> list[tuple[str, Scores]]:  # fmt: skip
    """Names and scores of latents, with those of another latent's explanation."""
    given = {i: text for i in chosen if isinstance(text := texts[i], Explanation)}
    able = list(given)
    order = next_in_circle([subject.latents[i].name for i in able]) if len(able) > 1 else ()
    others = [able[k] for k in order]
    found = []
    for n, i in enumerate(able):
        latent = subject.latents[i]
        scores = scorer.score(latent, latent.seed, given[i])
        if others:
            other = others[n]
            wrong = scorer.score(latent, latent.seed, given[other], subject.latents[other])
            scores.values.update({f"{name}_deranged": v for name, v in wrong.values.items()})
        found.append((latent.name, scores))
    return found
