"""`steer`: what an LM writes when a feature is pushed, beside every control at equal KL."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import field_validator

from sae.artifacts.placed import PlacedSAE
from sae.chat.local import LOCAL
from sae.chat.settings import ChatSettings
from sae.errors import ConfigError
from sae.evals.base import Estimate, Measured, Resampled, register
from sae.evals.checks import require_place
from sae.features.grounds import split_texts
from sae.features.output_effects import (
    Contrast,
    Effect,
    Select,
    contrast,
    output_effects,
    strongest,
)
from sae.features.rated import Ratings, agreement, rate
from sae.features.sets import feature_set, read_features
from sae.features.steered import Neutral, before
from sae.features.steered_rows import (
    ARMS_TABLE,
    CURVES_TABLE,
    FEATURES_TABLE,
    RATINGS_TABLE,
    TEXTS_TABLE,
    arm_rows,
    curve_rows,
    feature_rows,
    metrics,
    on_choosing,
    rating_rows,
    shown,
    text_rows,
)
from sae.features.steered_studies import Studied, study_all
from sae.features.written import Pen
from sae.interventions.edits import known_latents
from sae.language.sites import output_module
from sae.probing.judge import Judge
from sae.settings import Absolute, setting
from sae.tables import Table
from sae.tasks.concept import SPORT, Concept, read_concept, read_openings, snippets
from sae.types import Split

log = logging.getLogger(__name__)
_START = 0.5
"""Size that candidates are pushed by, and searches start from, in lengths of the median row."""


class _Chosen(NamedTuple):
    """Latents to steer by, and what chose them."""

    every: list[Effect]
    latents: list[int]
    found: Contrast


@register
class SteerEval(Resampled):
    """Texts that an LM writes with a feature pushed, beside seven controls at equal KL.

    Features of a concept are chosen by their effect on the predictions. Half of the prompts choose
    how far each is pushed, the other half reports. A classifier of words judges the texts
    (docs/guides/steering.md).
    """

    name: ClassVar[str] = "steer"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "predictions"})
    sets: tuple[str, ...] = setting(
        SPORT, min_length=1, help="binary sets in the wheel sae-probes: class 1 of the first is "
        "the concept, class 1 of the others (of a single set its class 0) is not",
    )  # fmt: skip
    csv: Absolute | None = setting(
        None, help="a CSV file with the columns text,label in place of the sets"
    )
    label: str = setting("", help="the class of the CSV file that is the concept")
    words: str = setting("", help="the concept in words, for the prompt; default: sport, or label")
    features: tuple[int, ...] = setting((), help="latents to choose from; [] takes candidates")
    features_file: Absolute | None = setting(None, help="a features.json to choose from")
    candidates: int = setting(
        30, ge=1, help="latents to choose from: those whose mean differs most with the concept"
    )
    num_features: int = setting(5, ge=1, help="latents to steer by")
    select: Select = setting(
        "activation", help="how they are chosen: by the difference of the mean activations, the "
        "output score, or the change of the token confidence",
    )  # fmt: skip
    text_file: Absolute | None = setting(
        None, help="prompts, one a line; default: 16 neutral openings"
    )
    prompts: int = setting(16, ge=4, help="prompts, the first ones; every second one reports")
    kl: tuple[float, ...] = setting(
        (0.1, 0.25, 0.5, 1.0, 2.0), min_length=1, help="KLs that all arms are brought to, in nats"
    )
    draws: int = setting(4, ge=1, help="texts for each feature, arm, KL and prompt")
    new_tokens: int = setting(32, ge=3, help="tokens that are written")
    temperature: float = setting(0.7, ge=0, help="of the draws; 0 takes the likeliest token")
    num_texts: int = setting(200, ge=20, help="texts of each class whose activations are compared")
    num_tokens: int = setting(2048, ge=1, help="test tokens that the cost is measured on")
    batch_texts: int = setting(40, ge=1, help="texts written at once; decides memory")
    batch_contexts: int = setting(8, ge=1, help="neutral contexts in a pass; decides memory")
    chat: ChatSettings = setting(
        ChatSettings(), help="a chat LM that rates the texts; without an address nobody is asked"
    )
    seed: int = setting(0, ge=0, help="of the split of texts, the draws and the controls")

    @field_validator("kl")
    @classmethod
    def _positive(cls, kl: tuple[float, ...]) -> tuple[float, ...]:
        if min(kl) <= 0 or len(set(kl)) < len(kl):
            raise ValueError("different numbers above 0")
        return tuple(sorted(kl))

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Choose features, steer by each of them and by all controls."""
        (one,) = subjects
        begun = time.perf_counter()
        require_place(one, self.name)
        one.rows(on)  # refuses an SAE of another width
        self.chat.check_key()
        given = self._given(one)
        prompts = read_openings(self.text_file, self.prompts)
        pens = (self._pen(one, prompts[0::2]), self._pen(one, prompts[1::2]))
        concept = read_concept(self.sets, self.csv or "", self.label, self.words)
        for pen in pens:
            pen.read(before(concept.words))  # an arm that is written last must not fail then
        train, test = split_texts(concept.texts, self.seed)
        judge = Judge.fit(*(
            snippets(one.lm.tokenizer, concept.texts, side, self.new_tokens)
            for side in (train, test)
        ))  # fmt: skip
        log.info(
            "The judge of %s: balanced accuracy %.3f, AUC %.3f on %d held-out snippets.",
            concept.words, judge.accuracy, judge.auc, judge.num_test,
        )  # fmt: skip
        chosen = self._choose(one, concept, train, pens[0], given)
        studied = study_all(
            one, chosen.latents, chosen.found, pens, judge, targets=self.kl,
            start=_START * chosen.found.norm, words=concept.words, seed=self.seed,
            neutral=Neutral(on, self.num_tokens, self.batch_contexts),
            decided={
                "texts": concept.texts.key, "prompts": list(prompts),
                **{name: getattr(self, name)
                   for name in ("draws", "new_tokens", "temperature", "num_texts")},
            },
        )  # fmt: skip
        texts = list(text_rows(studied, prompts[1::2], self.kl))
        ratings = self._rated(one, concept, texts)
        return self._result(
            one, chosen, concept, judge, prompts, studied, texts, ratings,
            round(time.perf_counter() - begun, 1),
        )  # fmt: skip

    def _given(self, one: PlacedSAE) -> list[int]:
        """Latents that the user names."""
        if self.features and self.features_file:
            raise ConfigError(
                "eval.steer.features and eval.steer.features_file both name latents. Give one."
            )
        given = list(self.features)
        if self.features_file:
            given = list(read_features(self.features_file, one).latents)
            if not given:
                raise ConfigError(f"{self.features_file} holds no latent. Give another file.")
        known_latents(given, one.sae.d_sae, torch.device("cpu"))
        return list(dict.fromkeys(given))

    def _pen(self, one: PlacedSAE, prompts: Sequence[str]) -> Pen:
        return Pen(
            one, prompts, draws=self.draws, new_tokens=self.new_tokens,
            temperature=self.temperature, seed=self.seed, batch_texts=self.batch_texts,
        )  # fmt: skip

    def _choose(
        self, one: PlacedSAE, concept: Concept, train: Sequence[int], pen: Pen, given: list[int]
    ) -> _Chosen:
        found = contrast(
            one, concept.texts, train, per_class=self.num_texts, max_tokens=2 * self.new_tokens
        )
        latents = given
        if not given:
            more = int((found.latents > 0).sum())
            top = found.latents.topk(min(self.candidates, more))
            latents = top.indices.tolist()
        if not latents:
            raise ConfigError(
                f"No latent is more active on texts about {concept.words} than on others. Choose "
                "another concept, or name latents (eval.steer.features)."
            )
        every = output_effects(one, latents, found, pen.ids, _START * found.norm)
        best = strongest(every, self.select, self.num_features)
        return _Chosen(every, [effect.latent for effect in best], found)

    def _rated(
        self, one: PlacedSAE, concept: Concept, texts: Sequence[dict[str, Any]]
    ) -> Ratings | None:
        """Ratings by a chat LM, if one is given; they are written into the rows of the texts."""
        if self.chat.base_url is None:
            return None
        desk = self.chat.desk(one.lm if self.chat.base_url == LOCAL else None)
        ratings = rate(desk, concept.words, [shown(row) for row in texts])
        for row in texts:
            row |= ratings.of[shown(row)].to_json()
        return ratings

    def _result(
        self, one: PlacedSAE, chosen: _Chosen, concept: Concept, judge: Judge,
        prompts: Sequence[str], studied: Studied, texts: Sequence[dict[str, Any]],
        ratings: Ratings | None, seconds: float,
    ) -> Measured:  # fmt: skip
        studies = studied.features
        arms = arm_rows(studied, self.bootstrap)
        rated = [] if ratings is None else rating_rows(studied, texts, self.bootstrap)
        features = feature_rows(chosen.every, studied, self.kl, one.lm.tokenizer, self.bootstrap)
        weights = {latent: on_choosing(study) for latent, study in studies.items()}
        ranked = sorted(weights, key=weights.__getitem__, reverse=True)
        best, at = ranked[0], studies[ranked[0]]["at"]
        assert one.point is not None
        return Measured(
            metrics={
                name: Estimate(*ends)
                for name, ends in (metrics(arms) | metrics(rated, "rated_")).items()
            },
            tokens={
                "features": len(studies), "choosing prompts": len(prompts[0::2]),
                "reporting prompts": len(prompts[1::2]), "held-out snippets": judge.num_test,
            },
            details={
                "concept": concept.words,
                "judge": {"balanced accuracy": judge.accuracy, "auc": judge.auc,
                          "training snippets": judge.num_train,
                          "held-out snippets": judge.num_test},
                "ceiling_target": self.kl[studied.shared["at"]],
                "missing": "AxBench's score of how well an instruction is followed",
                "features": asdict(feature_set(
                    one, ranked, [weights[latent] for latent in ranked],
                    eval=self.name, task=concept.words, select=self.select,
                    weight="mean score on the choosing prompts",
                )),
                "steering": {
                    "latent": best, "hookpoint": output_module(one.lm.model, one.point),
                    "vector": one.sae.W_dec[best].float().tolist(),
                    "coefficient": studies[best]["choose"][at]["size"]
                    / float(one.sae.W_dec[best].norm()),
                },
                **({} if ratings is None else {"chat": ratings.facts | {
                    "agreement": agreement(ratings.of, {shown(row): row for row in texts})
                }}),
                "seconds": seconds,
            },
            tables={
                "arms": Table.of(ARMS_TABLE, arms),
                "curves": Table.of(CURVES_TABLE, curve_rows(studied, self.kl, self.bootstrap)),
                "features": Table.of(FEATURES_TABLE, features),
                "texts": Table.of(TEXTS_TABLE, texts),
                **({} if ratings is None else {"ratings": Table.of(RATINGS_TABLE, rated)}),
            },
        )  # fmt: skip
