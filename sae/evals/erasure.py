"""`erasure`: what single latents and closed forms take out of a concept, and at what cost."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from pydantic import field_validator

from sae.artifacts.placed import PlacedSAE
from sae.cached import cached
from sae.errors import ConfigError
from sae.evals.base import Estimate, Measured, Resampled, register
from sae.evals.checks import require_place
from sae.features.erased import Scores
from sae.features.erased_rows import ENDS, LESS, OUTCOMES, Row, areas, costs, rows
from sae.features.erasing import Erasure, Ranked, closed_forms, controls, latent_edits, ranked
from sae.features.grounds import (
    TEST_SHARE,
    Named,
    biography_ground,
    labelled_ground,
    prompt_ground,
)
from sae.features.make import contexts_in
from sae.features.prompted import on_text
from sae.features.sets import feature_set, sae_key
from sae.progress import progress
from sae.settings import Count, setting
from sae.tables import Table, Type
from sae.tasks.biographies import PROFESSIONS
from sae.tasks.gender import MOST_VARIANTS
from sae.tasks.labelled import read_csv
from sae.tasks.names import single_token_names
from sae.types import Split

Word = Literal["gender", "pronoun", "transfer", "biographies"]
HEADLINE = "projection"
"""Edit of latents whose area stands for them in the metrics."""
SCORES = (
    "probability", "balanced_accuracy", "auc", "calibrated_accuracy", "logit_difference",
    "linear_probe", "mlp_probe", "kept_linear_probe", "kept_mlp_probe", "size", "relative_size",
)  # fmt: skip
_NUMBERS = (
    *SCORES,
    *(f"drop_{name}" for name in OUTCOMES),
    "kl",
    "ce",
    "neutral_size",
    "neutral_relative_size",
)
_UNITS = {"kl": "nats", "ce": "nats", "logit_difference": "nats"}
_EDITS: dict[str, tuple[Type, str]] = {
    "task": ("string", ""), "fitted_on": ("string", ""), "method": ("string", ""),
    "latents": ("int64", ""),
    **{f"{name}{end}": ("float64", _UNITS.get(name, "")) for name in _NUMBERS for end in ENDS},
}  # fmt: skip
_AREAS: dict[str, tuple[Type, str]] = {
    "task": ("string", ""), "method": ("string", ""), "outcome": ("string", ""),
    "axis": ("string", ""), "budget": ("float64", ""),
    **{f"area{end}": ("float64", "") for end in ENDS},
}  # fmt: skip
_FORMAT = 3
"""Counts up when what is kept in the cache changes its meaning."""


class _Fit(NamedTuple):
    """Edits fitted on a ground, with their cost on neutral text."""

    named: Named
    ranked: Ranked
    edits: list[Erasure]
    neutral: list[Row]


@register
class ErasureEval(Resampled):
    """Concept erasure: 1 to k latents against LEACE, SPLINCE, class means and random directions.

    An edit acts on all tokens of a query from the name on (on all tokens of a text), is fitted on
    such rows of training names alone, and is measured on test names: two-way probability,
    accuracies and AUC of the LM's answers, fresh probes, size, and KL and cross entropy on neutral
    text (arXiv 2309.08600 version 1; docs/guides/erasure.md).
    """

    name: ClassVar[str] = "erasure"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "predictions"})
    tasks: tuple[Word, ...] = setting(
        ("gender", "pronoun", "transfer", "biographies"),
        help="what is measured; transfer: edits fitted on gender, measured on pronoun",
    )
    csv: str = setting("", help="a CSV file with the columns text,label of two classes; one more")
    names: int = setting(100, ge=10, help="names of each gender, the most frequent ones")
    prompts: int = setting(2, ge=1, le=MOST_VARIANTS, help="prompts of each test name")
    ks: tuple[Count, ...] = setting((1, 2, 4, 8, 16), min_length=1, help="numbers of latents")
    pair: str = setting("professor/nurse", help="professions of the biographies, first/second")
    correlation: float = setting(
        0.9, ge=0.5, lt=1, help="share of the training biographies in which gender and job agree"
    )
    least_auc: float = setting(0.8, ge=0, le=1, help="a task that is solved worse is refused")
    num_tokens: int = setting(2048, ge=1, help="test tokens that KL and cross entropy are of")
    batch_contexts: int = setting(8, ge=1, help="contexts in a pass; decides memory")
    max_tokens: int = setting(128, ge=2, help="longer texts lose their end")
    seed: int = setting(0, ge=0, help="of the split of names, of examples, probes and controls")

    @field_validator("pair")
    @classmethod
    def _professions(cls, pair: str) -> str:
        words = pair.split("/")
        if len(words) != 2 or words[0] == words[1] or not set(words) <= set(PROFESSIONS):
            raise ValueError(f"two different of {', '.join(PROFESSIONS)}, with a / between them")
        return pair

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Fit, then measure every task."""
        (one,) = subjects
        self._check(one)
        one.rows(on)  # refuses an SAE of another width
        start = time.perf_counter()
        tasks = [*self.tasks, *(["csv"] if self.csv else [])]
        sides = {task: ("gender", "pronoun") if task == "transfer" else (task, task)
                 for task in tasks}  # fmt: skip
        grounds: dict[str, Named] = {}
        for name in dict.fromkeys(name for pair in sides.values() for name in pair):
            grounds[name] = self._ground(one, name)  # all are read, and may be refused, first
        fits: dict[str, _Fit] = {}
        listed, under, seconds = [], [], {}
        for task, (fitted_on, measured_on) in sides.items():
            begun = time.perf_counter()
            if fitted_on not in fits:
                fits[fitted_on] = self._fit(one, grounds[fitted_on], on)
            fit, level = fits[fitted_on], self.bootstrap.level
            found = self._scores(one, fit, grounds[measured_on], task)
            of_task = [*rows(task, fitted_on, fit.edits, found, fit.neutral, level)]
            listed += [edited.row for edited in of_task]
            under += areas(task, of_task, HEADLINE, level)
            seconds[task] = round(time.perf_counter() - begun, 1)
        return Measured(
            metrics=_metrics(tasks, listed, under),
            tokens={
                "tokens": contexts_in(one.source.store(on), self.num_tokens)
                * one.source.store(on).spec.ctx,
                "examples": sum(
                    len(grounds[name].ground.test.z)
                    for name in dict.fromkeys(measured for _, measured in sides.values())
                ),
            },
            details={
                "fits": {name: fit.named.facts for name, fit in fits.items()},
                "features": {name: self._features(one, name, fit) for name, fit in fits.items()},
                "seconds": seconds | {"all": round(time.perf_counter() - start, 1)},
            },
            tables={"edits": Table.of(_EDITS, listed), "areas": Table.of(_AREAS, under)},
        )  # fmt: skip

    def _check(self, one: PlacedSAE) -> None:
        require_place(one, self.name)
        if not self.tasks and not self.csv:
            raise ConfigError(
                "eval.erasure.tasks is empty and there is no eval.erasure.csv. Give one of "
                f"{', '.join(get_args(Word))}, or a CSV file."
            )
        if max(self.ks) > one.sae.d_sae:
            raise ConfigError(
                f"eval.erasure.ks has {max(self.ks)}; numbers must be at most {one.sae.d_sae}, the "
                "number of latents."
            )

    def _ground(self, one: PlacedSAE, task: str) -> Named:
        """A task's rows and answers.

        Raises:
            ConfigError: If the LM, or a probe, does not solve it.
        """
        named = self._read(one, task)
        clean = named.ground.clean
        what = "auc" if "auc" in clean else "linear_probe"
        if not (found := float(clean[what][0])) >= self.least_auc:  # NaN is no answer either
            words = {"auc": "the AUC of its answers is", "linear_probe": "a probe's accuracy is"}
            raise ConfigError(
                f"{one.lm.name} does not solve {task}: on test examples {words[what]} "
                f"{found:.2f}, below eval.erasure.least_auc={self.least_auc:g}. There is no "
                "concept to take out. Choose another task, layer or LM."
            )
        return named

    def _read(self, one: PlacedSAE, task: str) -> Named:
        common: dict[str, Any] = {"seed": self.seed, "bootstrap": self.bootstrap}
        if task in ("gender", "pronoun"):
            names = single_token_names(
                one.lm.tokenizer, self.names, test=TEST_SHARE, seed=self.seed
            )
            return prompt_ground(one, task, names, prompts=self.prompts, **common)
        common["max_tokens"] = self.max_tokens
        if task == "csv":
            return labelled_ground(one, read_csv(self.csv), **common)
        first, second = self.pair.split("/")
        return biography_ground(one, (first, second), correlation=self.correlation, **common)

    def _fit(self, one: PlacedSAE, named: Named, on: Split) -> _Fit:
        train = named.ground.train
        z = train.rows_of(train.z)
        keep = None if train.keep is None else train.rows_of(train.keep)
        found = ranked(one.sae, train.x, z, self.seed)
        latents = found.latents[: max(self.ks)].tolist()
        edits = [
            *latent_edits(one.sae, latents, self.ks), *closed_forms(train.x, z, keep),
            *controls(one.sae, found, self.ks, self.seed),
        ]  # fmt: skip
        return _Fit(named, found, edits, self._neutral(one, named, edits, on))

    def _identity(self, one: PlacedSAE, named: Named) -> dict[str, object]:
        return {
            "format": _FORMAT, "sae": sae_key(one), "lm": dict(one.lm.identity),
            "dtype": str(one.lm.dtype), "point": str(one.point), "fit": named.key,
            "counted": one.counted and one.counted.to_json(), "ks": self.ks, "seed": self.seed,
        }  # fmt: skip

    def _neutral(
        self, one: PlacedSAE, named: Named, edits: Sequence[Erasure], on: Split
    ) -> list[Row]:
        store = one.source.store(on)
        contexts = contexts_in(store, self.num_tokens)

        def make():
            with progress("edit neutral text", contexts * (len(edits) + 1), "contexts") as advance:
                sums = on_text(
                    one, on, [edit.replacement for edit in edits], num_tokens=self.num_tokens,
                    batch_contexts=self.batch_contexts, advance=advance,
                )  # fmt: skip
            return {"sums": sums}, None

        identity = self._identity(one, named) | {"text": store.spec.key, "contexts": contexts}
        return costs(cached("erasure/neutral-", identity, make)[0]["sums"], self.bootstrap)

    def _scores(self, one: PlacedSAE, fit: _Fit, named: Named, task: str) -> list[Scores]:
        """Scores without an edit, and under each."""

        def make():
            found = {}
            with progress(f"erase: {task}", len(fit.edits), "edits") as advance:
                for i, edit in enumerate(fit.edits):
                    of_edit = named.ground.scores(edit.replacement)
                    found |= {f"{i}.{name}": torch.tensor(v) for name, v in of_edit.items()}
                    advance(1)
            return found, None

        identity = self._identity(one, fit.named) | {
            "measured": named.key, "bootstrap": self.bootstrap.model_dump(),
        }  # fmt: skip
        kept = cached("erasure/scores-", identity, make)[0]
        clean = named.ground.clean
        under = [{name: kept[f"{i}.{name}"].numpy() for name in clean}
                 for i in range(len(fit.edits))]  # fmt: skip
        return [clean, *under]

    def _features(self, one: PlacedSAE, name: str, fit: _Fit) -> dict[str, Any]:
        """The chosen latents, as a file of latents holds them."""
        most = max(self.ks)
        made = feature_set(
            one, fit.ranked.latents[:most].tolist(), fit.ranked.effect[:most].tolist(),
            evaluation=self.name, fitted_on=name, settings=self.model_dump(mode="json"),
            weight="difference of class means times the logit of a linear probe",
        )  # fmt: skip
        return asdict(made)


def _metrics(
    tasks: Sequence[str], edits: Sequence[Mapping[str, Any]], areas: Sequence[Mapping[str, Any]]
) -> dict[str, Estimate]:
    """For each task the drops under one latent, its rivals and controls; areas less LEACE's."""
    found: dict[str, Estimate] = {}

    def add(name: str, row: Mapping[str, Any], of: str) -> None:
        key = f"{name}_{row['method']}".replace(" ", "_").replace("-", "_").lower()
        found[key] = Estimate(*(row[f"{of}{end}"] for end in ENDS))

    for task, outcome in product(tasks, OUTCOMES):
        for row in edits:
            measured = row["task"] == task and row.get(f"drop_{outcome}") is not None
            if measured and row["method"] != "none" and row["latents"] <= 1:
                add(f"{task}_drop_{outcome}", row, f"drop_{outcome}")
        for row in areas:
            if (row["task"], row["outcome"]) == (task, outcome) and row["method"] == LESS:
                add(f"{task}_area_{outcome}_{row['axis']}", row, "area")
    return found
