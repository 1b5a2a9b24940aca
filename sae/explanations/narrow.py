"""Narrow scorers: a causal LM reads explanations of as many latents as a budget pays for."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from sae.chat.desk import Desk
from sae.errors import ConfigError
from sae.explanations import intervention, pushed
from sae.explanations.budget import Budget
from sae.explanations.counterfactual import Counterfactuals
from sae.explanations.explainers import Explanation, Unexplained
from sae.explanations.intervention import Intervention
from sae.explanations.latents import Latent, Subject, ranked
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
"""Tokens that an explanation and another latent's take, about."""
ONCE: dict[Scorer, int] = {"intervention": pushed.TOKENS}
"""Tokens that a latent takes beside, whatever the number of its explanations, about."""


class Narrow:
    """The narrow scorers that are asked for, with what the judge may read.

    Args:
        judge: The LM.
        scorers: Their names.
        budget: Tokens that the judge may read and write; once they are spent, no further latent is
            begun.
        rules: The test text with its properties, which `counterfactual` needs.
        desk: Asks the server that reads for surprisal and simulation; None: the LM reads.
    """

    def __init__(
        self, judge: LMJudge, scorers: Sequence[Scorer], budget: Budget,
        rules: RuleText | None = None, desk: Desk | None = None,
    ):  # fmt: skip
        self.log_probs, self.desk, self.budget = LogProbs(judge, budget), desk, budget
        self.scorers: list[Scorer] = list(dict.fromkeys(scorers))
        self.allowed = budget.left if desk is None else min(budget.left, desk.budget)
        self._changed = None if rules is None else Counterfactuals(rules)
        self._tokens = TOKENS | ({} if rules is None else {
            "counterfactual": tokens_of(rules.text.ctx)
        })  # fmt: skip
        self._tokens_of_round = 0 if rules is None else tokens_of_round(rules.text.ctx)
        if desk is not None:
            self._tokens |= {name: TIMES * TOKENS[name] for name in SERVED}
        self._to_come: list[Mapping[Scorer, int]] = []
        self.latents: dict[Scorer, int] = {}
        """Latents of each dictionary that each scorer is to read the explanations of."""
        self.unasked: dict[Scorer, Counter[str]] = {}
        """Latents of them that were left when the budget was spent, by dictionary."""
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
        with progress("judge LM", self.allowed) as self.budget.advance:
            yield

    def plan(
        self, classes: Mapping[Scorer, int], to_come: Sequence[Mapping[Scorer, int]],
        tested: int = 0,
    ) -> None:  # fmt: skip
        """Divide the budget of tokens: tests by explainers and known classes first.

        What is left is divided equally among the scorers. As the tokens of a latent are an
        estimate, each dictionary and each scorer of it gets a share of what is left when its turn
        comes.

        Args:
            classes: Number of classes of known meaning, with one explanation each, that each scorer
                reads; `counterfactual` needs no LM for them.
            to_come: The dictionaries in the order in which they will be read: by the scorers that
                read one, the number of explanations of each latent that cost tokens.
            tested: See the attribute.

        Raises:
            ConfigError: If the budget is too small for two latents of each dictionary.
        """
        self._to_come, self.tested = list(to_come), tested
        first = sum(classes.get(name, 0) * self._cost(name, 1) for name in self.scorers)
        first += tested * self._tokens_of_round
        each = {
            name: sum(self._cost(name, one.get(name, 0)) for one in to_come)
            for name in self.scorers
        }
        for name in self.scorers:
            self.latents[name] = (self.allowed - first) // len(self.scorers) // each[name]
        # another latent's explanation is needed
        least = first + 2 * len(self.scorers) * max(each.values(), default=0)
        if self.allowed < first or min(self.latents.values(), default=2) < 2:
            what = [f"tests of rules of {tested} latents"] if tested else []
            if self.scorers:
                what.append(
                    f"{max(classes.values(), default=0)} known classes and 2 latents of each "
                    f"dictionary by {', '.join(self.scorers)}"
                )
            raise ConfigError(
                f"{self.allowed:,} tokens of eval.autointerp.lm_tokens are too few: "
                f"{' and '.join(what)} take about {least:,} tokens. Give more, or fewer scorers or "
                "latents."
            )
        if self.desk is not None and set(self.scorers) & set(SERVED):
            log.info(
                "%s will read up to about %s more tokens for log-probabilities (lm_tokens).",
                self.desk.client.identity["model"], f"{self.allowed:,}",
            )  # fmt: skip

    def _cost(self, name: Scorer, explanations: int) -> int:
        """Tokens that a latent takes, about."""
        once = ONCE.get(name, 0) if explanations else 0
        return explanations * self._tokens[name] + once

    def read_classes(
        self, subject: Subject, words: Words, bench: Bench, rows: Sequence[Row]
    ) -> list[Row]:
        """Rows of known classes with the narrow scores added, of all classes; see `read`."""
        for name in self.scorers:
            rows = self._read(name, len(subject.latents), subject, words, bench, rows)
        return list(rows)

    def read(self, subject: Subject, words: Words, bench: Bench, rows: Sequence[Row]) -> list[Row]:
        """Rows of the next dictionary with the narrow scores added.

        Latents are taken equally many from each bin of density; a bin with fewer gives all.

        Args:
            subject: The dictionary.
            words: The explanations that are read, by explainer; latents have one by the first.
            bench: Source of the excerpts.
            rows: Rows from `study`, of all explainers.
        """
        if not self.scorers:
            return list(rows)
        costs: list[dict[Scorer, int]] = [
            {name: self.latents[name] * self._cost(name, one.get(name, 0)) for name in self.scorers}
            for one in self._to_come
        ]
        all_left = sum(sum(one.values()) for one in costs)
        own = self._to_come.pop(0)
        for name in self.scorers:
            if own.get(name) is None:
                continue
            cost = costs[0][name]
            # what takes no tokens is read whatever is left
            with self.budget.part(cost / all_left) if cost else nullcontext():
                rows = self._read(name, self.latents[name], subject, words, bench, rows, not cost)
            all_left -= cost
        return list(rows)

    def _read(
        self, name: Scorer, count: int, subject: Subject, words: Words, bench: Bench,
        rows: Sequence[Row], free: bool = False,
    ) -> list[Row]:  # fmt: skip
        """Rows with the scores of so many latents added, or of fewer if the budget ends before."""
        scorer = self._scorer(name, subject, bench)
        if scorer is None:
            return list(rows)
        first = next(iter(words))
        able = [
            i for i, row in enumerate(row for row in rows if row.explainer == first)
            if row.state == "explained"
        ]  # fmt: skip
        order = ranked(np.array([subject.latents[i].density for i in able]))
        chosen = [able[k] for k in order[:count]]
        wrong = {explainer: _others(subject, chosen, texts) for explainer, texts in words.items()}
        found: dict[tuple[str, str], Scores] = {}
        for n, i in enumerate(chosen):
            if not (free or self.budget.left):
                left = self.unasked.setdefault(name, Counter())
                left[subject.name] += len(chosen) - n
                break
            for explainer, texts in words.items():
                if isinstance(texts[i], Explanation):
                    scores = _scored(scorer, subject, i, wrong[explainer].get(i), texts)
                    found[explainer, subject.latents[i].name] = scores
        return [self._with(row, found.get((row.explainer, row.latent))) for row in rows]

    def _scorer(self, name: Scorer, subject: Subject, bench: Bench) -> NarrowScorer | None:
        """The scorer; None where the dictionary gives it nothing to read."""
        if self.desk is not None and name in SERVED:
            return SERVED[name](self.desk, bench)
        if name in SCORERS:
            return SCORERS[name](self.log_probs, bench)
        if name == "intervention":
            return None if subject.pushes is None else Intervention(self.log_probs, subject.pushes)
        assert self._changed is not None, "evaluations give the test text's properties"
        reader = subject.reader
        return None if reader is None else RuleTest(self._changed, reader, self.budget)

    def facts(self) -> dict[str, Any]:
        """Tokens and latents that the judge read, plain JSON values."""
        facts: dict[str, Any] = {
            "budget": self.allowed, "tokens": self.budget.spent,
            "latents": self.latents, "unasked": self.unasked, "tested": self.tested,
            "constant simulations": self.constant,
        }  # fmt: skip
        if self.desk is not None:
            facts["server"] = dict(self.desk.client.identity)
        if "simulation" in self.scorers:
            facts["scale"] = 9 if self.desk else scale_of(self.log_probs.judge).top
        return facts

    def _with(self, row: Row, scores: Scores | None) -> Row:
        if scores is None:
            return row
        values = {**row.values, **scores.values}
        self.constant += int(values.pop("simulation_constant", 0))
        return row._replace(values=values, deciles={**row.deciles, **scores.deciles})


def _others(
    subject: Subject, chosen: Sequence[int], texts: Sequence[Explanation | Unexplained]
) -> dict[int, int]:
    """By latent, the other latent whose explanation it is given; {} for a single one."""
    able = [i for i in chosen if isinstance(texts[i], Explanation)]
    order = next_in_circle([subject.latents[i].name for i in able]) if len(able) > 1 else ()
    return {i: able[k] for i, k in zip(able, order, strict=False)}


def _scored(
    scorer: NarrowScorer, subject: Subject, i: int, other: int | None,
    texts: Sequence[Explanation | Unexplained],
) -> Scores:  # fmt: skip
    """Scores of a latent's explanation, with those of another latent's."""
    latent, own = subject.latents[i], texts[i]
    assert isinstance(own, Explanation)
    scores = scorer.score(latent, latent.seed, own)
    if other is not None:
        text = texts[other]
        assert isinstance(text, Explanation)
        wrong = scorer.score(latent, latent.seed, text, subject.latents[other])
        scores.values.update({f"{name}_deranged": v for name, v in wrong.values.items()})
    return scores
