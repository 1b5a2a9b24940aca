"""Base of `autointerp` and `interpretability`: settings, and the study of one SAE."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import ClassVar, NamedTuple

from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError, unknown
from sae.evals.base import Estimate, Measured, Resampled
from sae.evals.checks import require_training_text
from sae.evals.controls import (
    RANDOM_LM,
    Control,
    fitted_controls,
    given_controls,
    missing_controls,
    other_seeds,
)
from sae.explanations import falsified, saebench, strata, summary
from sae.explanations.asking import Asking, asks
from sae.explanations.budget import Budget
from sae.explanations.cards import shown_contexts
from sae.explanations.changed import LMReader, TokenReader
from sae.explanations.correlated import CORRELATIONS, correlations
from sae.explanations.embeddings import Embeddings
from sae.explanations.excerpts import PlacedText, repeated
from sae.explanations.explain import explained, raised_tokens
from sae.explanations.intervention import PUSHED, pushed_rows
from sae.explanations.known import known_classes
from sae.explanations.latents import (
    Latent,
    Subject,
    name_of,
    placed_text,
    subject_of,
    token_lookup,
)
from sae.explanations.log_probs import LocalJudge
from sae.explanations.narrow import Narrow, Scorer
from sae.explanations.pushed import Writing, of_latents
from sae.explanations.rule_texts import rule_texts
from sae.explanations.scores import Bench
from sae.explanations.study import Row, study
from sae.explanations.tested import TESTED
from sae.explanations.truth import CLASSES, TOKEN_CLASSES
from sae.features.make import all_firings
from sae.features.watched import by_hash
from sae.language.encoder import load_encoder
from sae.progress import progress
from sae.settings import setting
from sae.tables import Table
from sae.types import Split

LOOKUP = "token lookup"
_KNOWN: dict[Scorer, int] = {
    "surprisal": CLASSES, "simulation": CLASSES, "intervention": TOKEN_CLASSES,
}  # fmt: skip
"""Known classes that each scorer by the LM reads."""


class Wanted(NamedTuple):
    """Latents, explanations and controls of a study that were asked for.

    Args:
        features: Names of the SAE's latents; without any they are drawn.
        explanations: A user's explanations, by latent.
        controls: Trained controls: folders of runs or sweeps.
        seeds: Runs of other seeds.
    """

    features: tuple[str, ...] = ()
    explanations: Mapping[str, str] | None = None
    controls: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()


class ExplainingEval(Resampled):
    """Explanations of latents, and scores of them beside controls."""

    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    num_latents: int = setting(
        100, ge=2, help="latents of each dictionary, equally many of each bin of density"
    )
    explainers: tuple[str, ...] = setting(
        ("rules", "output"), help="rules (counted on the training text), output (tokens that the "
        "atom raises), tested (of three rules the one that stands a test on changed text best), "
        "contexts and token_pairs (by a chat LM); tokens (the most frequent token of top contexts) "
        "is always there",
    )  # fmt: skip
    chat: Asking = setting(Asking(), help="a chat LM that explains and judges")
    num_tokens: int = setting(
        131_072, ge=1, help="tokens that are read of the training and of the test text"
    )
    scorers: tuple[Scorer, ...] = setting(
        (), help="scorers by the LM under study, which are slow: surprisal, simulation, "
        "counterfactual (necessity and sensitivity of rules), intervention (text that is written "
        "under a push)",
    )  # fmt: skip
    lm_tokens: int = setting(
        2_000_000, ge=1, help="tokens that the LM under study may read and write for these scorers "
        "and for the explainer tested; decides how many latents the scorers read",
    )  # fmt: skip
    lm_dictionaries: tuple[str, ...] = setting(
        (), help="dictionaries beside the SAE that these scorers read, by their names on the page "
        "(neurons top-k, frozen decoder); (): all",
    )  # fmt: skip
    pool: int = setting(5000, ge=100, help="test excerpts that all latents share as negatives")
    batch_rows: int = setting(2048, ge=1, help="vectors encoded at once; decides memory")

    def explain(self, one: PlacedSAE, on: Split, wanted: Wanted) -> Measured:
        """Explain and score an SAE's latents and those of all controls.

        Args:
            one: The SAE.
            on: The split that scorers read.
            wanted: Latents, explanations and controls that were asked for.
        """
        self.chat.check(self.explainers, self.scorers)
        if self.lm_dictionaries and not self.scorers:
            raise ConfigError(
                f"{self.where}lm_dictionaries has no effect without {self.where}scorers. Add some, "
                "or leave lm_dictionaries out."
            )
        require_training_text(one, self.name)
        start, budget = time.perf_counter(), Budget(self.lm_tokens)
        one.prepare("train")
        train, test = (
            placed_text(one, split, self.num_tokens, self.batch_rows) for split in ("train", on)
        )
        duplicates = repeated(test, train)
        texts = (train, test)
        allowed = test.counted & ~duplicates
        training, tests = rule_texts(texts, allowed)
        trained = given_controls(one, wanted.controls)
        controls = [
            *(Control(summary.SAE, other) for other in [one, *other_seeds(one, wanted.seeds)]),
            *fitted_controls(one, self._l0(one, on)),
            *trained,
        ]
        fitted = time.perf_counter()
        counts = Counter([*(control.name for control in controls), LOOKUP])
        asked = {name: count * self.num_latents for name, count in counts.items()}
        asked[summary.SAE] += (len(wanted.features) or self.num_latents) - self.num_latents
        for name in self.lm_dictionaries:
            if name not in counts:
                raise ConfigError(unknown(name, counts, f"{self.where}lm_dictionaries="))
        judges = self.chat.open(one, self._explainers(), asked, wanted.explanations is not None)
        embeddings = Embeddings(load_encoder(str(one.sae.device)))
        bench = Bench(test, allowed, embeddings, self.pool)
        studies: dict[str, list[Row]] = {}
        rounds = asked[summary.SAE] if TESTED in self.explainers else 0
        desk = judges.desk if judges and self.chat.log_probs else None
        narrow = Narrow(LocalJudge(one.lm), self.scorers, budget, tests, desk)
        given = wanted.explanations is not None
        narrow.plan(_KNOWN, list(self._to_come(one, controls, given)), rounds)
        with narrow.bar(), progress("explain", len(controls) + 1, "dictionaries") as advance:
            truth = known_classes(
                one, texts, training, tests, bench, judges, narrow,
                pushed="intervention" in self.scorers,
            )  # fmt: skip
            for subject in self._subjects(one, wanted.features, controls, texts):
                seen = studies.setdefault(subject.name, [])
                seed = len({row.seed for row in seen})
                own = subject.name == summary.SAE
                about = subject.name in self.chat.dictionaries
                names = [name for name in self._explainers(about) if name != TESTED or own]
                words = explained(
                    subject, training, names, wanted.explanations if own and not seed else None,
                    judges and judges.desk, budget,
                )  # fmt: skip
                rows = study(subject, words, bench, tests, judges if about else None)
                read = words if own else dict(islice(words.items(), 1))
                rows = narrow.read(subject, read, bench, rows)
                seen += [row._replace(seed=seed) for row in rows]
                advance(1)
            studied = []
            if judges is not None and (count := self.chat.saebench):
                studied = saebench.saebench(
                    self._alive(one, texts, count), texts, allowed, judges.desk
                )
        qualification = summary.qualification(truth, self.bootstrap)
        qualified = summary.qualified_on(qualification)
        rows = list(summary.by_subject(studies, self.bootstrap))
        own = [row for row in studies[summary.SAE] if not row.seed]
        return Measured(
            metrics={
                name: Estimate(*ends) for name, ends in summary.headline(rows, qualified).items()
            } | {
                name: Estimate(*ends)
                for name, ends in saebench.metrics(studied, self.bootstrap).items()
            },
            tokens={
                "training tokens": train.tokens.size, "test tokens": test.tokens.size,
                "latents": len({row.latent for row in own}), "excerpts": len(bench.pool),
            },
            details={
                "qualified": qualified, "missing": missing_controls(one, trained),
                "states": summary.states(studies),
                "duplicates": float((duplicates & test.counted).sum() / test.counted.sum()),
                "labels": "pos" in training.rules.properties, "embedded": embeddings.count,
                "seeds": counts[summary.SAE],
                "shown": shown_contexts(one, own, on, self.num_tokens, self.batch_rows),
                **({} if judges is None else {"chat": judges.to_json()}),
                "narrow": narrow.facts() if narrow.reads else None,
                "round": falsified.changed(own),
                "seconds": {
                    "read and fit": round(fitted - start, 1),
                    "explain and score": round(time.perf_counter() - fitted, 1),
                },
            },
            tables={
                "latents": Table.of(summary.LATENTS, list(summary.rows_of(studies))),
                "subjects": Table.of(summary.SUBJECTS, rows),
                "deciles": Table.of(strata.BY_DECILE, list(strata.by_decile(studies))),
                "densities": Table.of(strata.BY_DENSITY, list(strata.by_density(studies))),
                "correlations": Table.of(
                    CORRELATIONS, list(correlations(studies, self.bootstrap))
                ),
                "qualification": Table.of(summary.QUALIFICATION, qualification),
                **({"saebench": Table.of(saebench.STUDIED, studied)} if studied else {}),
                **falsified.tables(studies, own, self.bootstrap),
                "pushed": Table.of(PUSHED, list(pushed_rows(studies, self.bootstrap))),
                "classes": Table.of(
                    summary.LATENTS,
                    list(summary.rows_of({kind: rows for kind, (rows, _) in truth.items()})),
                ),
            },
        )  # fmt: skip

    def _to_come(
        self, one: PlacedSAE, controls: Sequence[Control], given: bool
    ) -> Iterator[dict[Scorer, int]]:
        """The explanations that scorers by the LM read of a latent of each dictionary, by scorer.

        Of the SAE they read all, of others the first. Bases as they are fire in nearly every
        excerpt: surprisal is undefined there, and rules are not tested. The lookup of tokens needs
        no LM to be tested, and has no direction to push.
        """
        for control in controls:
            own = control.name == summary.SAE
            count = len(self._explainers()) + (given and control.placed is one) if own else 1
            excerpts: tuple[Scorer, ...] = () if control.dense else ("surprisal", "counterfactual")
            pushed: tuple[Scorer, ...] = ("intervention",) if _is_pushed(control) else ()
            read = own or not self.lm_dictionaries or control.name in self.lm_dictionaries
            yield dict.fromkeys(("simulation", *excerpts, *pushed), count) if read else {}
        read = not self.lm_dictionaries or LOOKUP in self.lm_dictionaries
        yield {"surprisal": 1, "simulation": 1, "counterfactual": 0} if read else {}

    def _alive(
        self, one: PlacedSAE, texts: tuple[PlacedText, PlacedText], count: int
    ) -> Sequence[Latent]:
        """Latents that fire on the training text, chosen by the hashes of their numbers."""
        found = all_firings(one, "train", num_tokens=self.num_tokens, batch_rows=self.batch_rows)
        alive = by_hash([i for i, n in enumerate(found.counts.tolist()) if n > 0])[:count]
        names = [name_of(i, one.sae.d_sae) for i in alive]
        return subject_of(summary.SAE, one, texts, names, batch_rows=self.batch_rows).latents

    def _explainers(self, chat: bool = True) -> list[str]:
        """Names of the explainers, without those that ask a chat LM if it is not to be asked."""
        names = dict.fromkeys([*self.explainers, summary.TOKENS])
        return [name for name in names if chat or not asks(name)]

    def _l0(self, one: PlacedSAE, on: Split) -> float:
        found = all_firings(one, on, num_tokens=self.num_tokens, batch_rows=self.batch_rows)
        return float(found.counts.sum() / max(1, found.counted.sum()))

    def _subjects(
        self, one: PlacedSAE, features: tuple[str, ...], controls: Sequence[Control],
        texts: tuple[PlacedText, PlacedText],
    ) -> Iterator[Subject]:  # fmt: skip
        """The SAE and its other seeds, the controls and the lookup of tokens."""
        writing = Writing(one) if "intervention" in self.scorers and one.point else None
        for control in controls:
            placed = control.placed
            placed.prepare("train")
            subject = subject_of(
                control.name, placed, texts, features if features and placed is one
                else self.num_latents, batch_rows=self.batch_rows, dense=control.dense,
            )  # fmt: skip
            own = placed if control.name == RANDOM_LM else one
            tested = "counterfactual" in self.scorers or TESTED in self.explainers
            if tested and not control.dense:
                subject = replace(subject, reader=LMReader(placed, own.lm))
            if writing is not None and _is_pushed(control):
                subject = replace(subject, pushes=of_latents(writing, placed.sae))
            if "output" in self.explainers:
                raised = raised_tokens(subject.latents, placed, own.lm, texts[0].text)
                latents = [
                    replace(latent, raised=tokens)
                    for latent, tokens in zip(subject.latents, raised, strict=True)
                ]
                subject = replace(subject, latents=latents)
            yield subject
        lookup = token_lookup(LOOKUP, texts, self.num_latents)
        tokens = {latent.name: int(latent.name) for latent in lookup.latents}
        yield replace(lookup, reader=TokenReader(tokens))


def _is_pushed(control: Control) -> bool:
    """True for dictionaries of the same LM: their atoms are directions of its activations."""
    return control.name != RANDOM_LM
