"""`steer`: what an LM writes when a feature is pushed, beside every control at equal KL."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

import torch
from filelock import FileLock
from pydantic import field_validator

from sae.artifacts.placed import PlacedSAE
from sae.cached import cached_json
from sae.errors import ConfigError
from sae.evals.base import Estimate, Measured, Resampled, register
from sae.evals.checks import require_place
from sae.features.grounds import split_texts
from sae.features.make import contexts_in
from sae.features.output_effects import (
    Contrast,
    Effect,
    Select,
    contrast,
    output_effects,
    strongest,
)
from sae.features.sets import feature_set, read_features, sae_key
from sae.features.steered import (
    OF_FEATURE,
    OF_SHARED,
    Half,
    Neutral,
    arms_of,
    before,
    study_feature,
    study_shared,
)
from sae.features.steered_rows import (
    ENDS,
    SCORES,
    arm_rows,
    curve_rows,
    feature_rows,
    metrics,
    on_choosing,
    text_rows,
)
from sae.features.written import Pen
from sae.interventions.edits import known_latents
from sae.language.sites import output_module
from sae.probing.judge import Judge
from sae.progress import progress
from sae.provenance import cache_dir, content_key
from sae.settings import Absolute, setting
from sae.tables import Table, Type
from sae.tasks.concept import SPORT, Concept, read_concept, read_openings, snippets
from sae.types import Split

log = logging.getLogger(__name__)
_FORMAT = 3
"""Counts up when what is kept in the cache changes its meaning."""
_START = 0.5
"""Size that candidates are pushed by, and searches start from, in lengths of the median row."""
_ARMS: dict[str, tuple[Type, str]] = {
    "arm": ("string", ""),
    **{f"{name}{end}": ("float64", "") for name in (*SCORES, "feature_less_arm") for end in ENDS},
    "kl": ("float64", "nats"), "reached": ("float64", "share"), "size": ("float64", ""),
    **{f"neutral_{name}{end}": ("float64", "nats") for name in ("kl", "ce") for end in ENDS},
}  # fmt: skip
_CURVES: dict[str, tuple[Type, str]] = {
    "arm": ("string", ""), "draw": ("int64", ""), "target": ("float64", "nats"),
    "kl": ("float64", "nats"),
    **{f"{name}{end}": ("float64", "") for name in SCORES for end in ENDS},
    "reached": ("float64", "share"),
}  # fmt: skip
_FEATURES: dict[str, tuple[Type, str]] = {
    "latent": ("int64", ""), "chosen": ("bool", ""), "difference": ("float64", ""),
    "output_score": ("float64", ""), "confidence": ("float64", "nats"), "promoted": ("string", ""),
    "target": ("float64", "nats"), "size": ("float64", ""), "choosing": ("float64", ""),
    "reporting": ("float64", ""),
}  # fmt: skip
_TEXTS: dict[str, tuple[Type, str]] = {
    "latent": ("int64", ""), "arm": ("string", ""), "prompt": ("string", ""),
    "text": ("string", ""), "target": ("float64", "nats"),
    **{name: ("float64", "") for name in SCORES},
}  # fmt: skip


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
    new_tokens: int = setting(32, ge=3, help="tokens that are written")
    temperature: float = setting(0.7, ge=0, help="of the draws; 0 takes the likeliest token")
    num_texts: int = setting(200, ge=20, help="texts of each class whose activations are compared")
    num_tokens: int = setting(2048, ge=1, help="test tokens that the cost is measured on")
    batch_texts: int = setting(40, ge=1, help="texts written at once; decides memory")
    batch_contexts: int = setting(8, ge=1, help="neutral contexts in a pass; decides memory")
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
            "The judge of %s: accuracy %.3f, AUC %.3f on %d held-out snippets.",
            concept.words, judge.accuracy, judge.auc, judge.num_test,
        )  # fmt: skip
        chosen = self._choose(one, concept, train, pens[0], given)
        studies, shared = self._studies(one, on, chosen, concept, judge, pens, prompts)
        return self._result(
            one, on, chosen, concept, judge, prompts, studies, shared,
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
            one, prompts, new_tokens=self.new_tokens, temperature=self.temperature,
            seed=self.seed, batch_texts=self.batch_texts,
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

    def _studies(
        self, one: PlacedSAE, on: Split, chosen: _Chosen, concept: Concept, judge: Judge,
        pens: tuple[Pen, Pen], prompts: Sequence[str],
    ) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:  # fmt: skip
        """Studies of each feature and of the shared arms, each out of the cache.

        The shared arms need no SAE: those of other seeds at the same point take them from there.
        """
        neutral = Neutral(on, self.num_tokens, self.batch_contexts)
        store = one.source.store(on)
        identity = {
            "format": _FORMAT, "lm": dict(one.lm.identity),
            "dtype": str(one.lm.dtype), "point": str(one.point),
            "counted": one.counted and one.counted.to_json(), "texts": concept.texts.key,
            "words": concept.words, "prompts": list(prompts), "text": store.spec.key,
            "contexts": contexts_in(store, self.num_tokens),
            **{name: getattr(self, name)
               for name in ("kl", "new_tokens", "temperature", "num_texts", "seed")},
        }  # fmt: skip
        halves: list[Half] = []

        def both() -> tuple[Half, Half]:
            """Unsteered texts are written once, and only where an arm is not in the cache."""
            if not halves:
                start = _START * chosen.found.norm
                halves.extend(Half(pen, judge, self.kl, start) for pen in pens)
            return halves[0], halves[1]

        arms = {latent: arms_of(one, latent, chosen.found, self.seed) for latent in chosen.latents}
        own_steps, shared_steps = 1 + len(OF_FEATURE), 1 + len(OF_SHARED)
        with progress("steer", own_steps * len(arms) + shared_steps, "arms") as advance:
            shared = _kept(identity, shared_steps, advance, lambda: study_shared(
                one, both(), chosen.found.direction, concept.words, self.seed, neutral, advance
            ))  # fmt: skip
            studies = {
                latent: _kept(
                    identity | {"sae": sae_key(one), "latent": latent}, own_steps, advance,
                    lambda own=own: study_feature(one, both(), own, neutral, advance),
                )
                for latent, own in arms.items()
            }  # fmt: skip
        return studies, shared

    def _result(
        self, one: PlacedSAE, on: Split, chosen: _Chosen, concept: Concept, judge: Judge,
        prompts: Sequence[str], studies: Mapping[int, Mapping[str, Any]],
        shared: Mapping[str, Any], seconds: float,
    ) -> Measured:  # fmt: skip
        reporting = list(prompts[1::2])
        arms = arm_rows(studies, shared, self.bootstrap)
        features = feature_rows(chosen.every, studies, self.kl, one.lm.tokenizer)
        best = max(studies, key=lambda latent: on_choosing(studies[latent]))
        at = studies[best]["at"]
        assert one.point is not None
        return Measured(
            metrics={name: Estimate(*ends) for name, ends in metrics(arms).items()},
            tokens={
                "features": len(studies), "choosing prompts": len(prompts[0::2]),
                "reporting prompts": len(reporting), "held-out snippets": judge.num_test,
            },
            details={
                "concept": concept.words,
                "judge": {"accuracy": judge.accuracy, "auc": judge.auc,
                          "training snippets": judge.num_train,
                          "held-out snippets": judge.num_test},
                "ceiling_target": self.kl[shared["at"]],
                "missing": "AxBench's score of how well an instruction is followed",
                "features": asdict(feature_set(
                    one, list(studies),
                    [on_choosing(study) for study in studies.values()],
                    eval=self.name, task=concept.words, select=self.select,
                    weight="mean score on the choosing prompts",
                )),
                "steering": {
                    "latent": best, "hookpoint": output_module(one.lm.model, one.point),
                    "vector": one.sae.W_dec[best].float().tolist(),
                    "coefficient": studies[best]["choose"]["sizes"][at]
                    / float(one.sae.W_dec[best].norm()),
                },
                "seconds": seconds,
            },
            tables={
                "arms": Table.of(_ARMS, arms),
                "curves": Table.of(_CURVES, curve_rows(studies, shared, self.kl, self.bootstrap)),
                "features": Table.of(_FEATURES, features),
                "texts": Table.of(_TEXTS, text_rows(studies, shared, reporting, self.kl)),
            },
        )  # fmt: skip


def _kept(
    identity: Mapping[str, Any], arms: int, advance: Callable[[int], object],
    make: Callable[[], dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """A study out of the cache, made and kept there first where it lacks it."""
    file = cache_dir() / "steering" / f"{content_key(identity)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    made: list[dict[str, Any]] = []
    with FileLock(f"{file}.lock"):  # processes that want the same at the same time make it once
        found = cached_json(file, lambda: made.append(make()) or made[0])
    if not made:
        advance(arms)
    return found
