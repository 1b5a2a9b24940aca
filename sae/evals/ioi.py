"""`ioi`: how few latents carry the choice between two answers, found by patching them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar

import torch

from sae import functional
from sae.artifacts.placed import PlacedSAE
from sae.cached import cached_json
from sae.evals.base import Estimate, Measured, Resampled, refuse_transcoder, register
from sae.evals.controls import fitted_controls, given_controls, missing_controls
from sae.features.causal import Decomposition, Study, StudySettings, studied
from sae.features.effects import at_one_point
from sae.features.sets import feature_set, sae_key
from sae.language.precision import in_float32
from sae.progress import progress
from sae.provenance import cache_dir, content_key
from sae.settings import setting
from sae.tables import Table, Type
from sae.tasks.choose import halves_of
from sae.tasks.ioi import Counterfactual
from sae.tasks.task import LEAST_ACCURACY, Task
from sae.types import Split

FORMAT_VERSION = 2
_SETS: dict[str, tuple[Type, str]] = {
    "decomposition": ("string", ""), "method": ("string", ""), "draw": ("int64", ""),
    "size": ("int64", ""),
    **{f"{name}{end}": ("float64", unit)
       for name, unit in (("kl", "nats"), ("kl_paper", "nats"), ("difference", "logits"),
                          ("faithfulness", "share"), ("completeness", "share"))
       for end in ("", "_low", "_high")},
    "edit": ("float64", ""),
}  # fmt: skip
_DECOMPOSITIONS: dict[str, tuple[Type, str]] = {
    "decomposition": ("string", ""), "latents": ("int64", ""), "kl_empty": ("float64", "nats"),
    "kl_all": ("float64", "nats"), "kl_everything": ("float64", "nats"),
    **{f"half_{method}": ("int64", "")
       for method in ("attribution", "gradients", "active", "random")},
    "faithful_95": ("int64", ""), "spearman": ("float64", ""),
}  # fmt: skip
_LATENTS: dict[str, tuple[Type, str]] = {
    "latent": ("int64", ""), "attribution": ("float64", "logits"),
    "integrated_gradients": ("float64", "logits"), "exact": ("float64", "logits"),
    "change": ("float64", ""), "masks": ("int64", ""),
}  # fmt: skip


@register
class IOIEval(StudySettings, Resampled):
    """Latents that decide between two answers (arXiv 2309.08600, section 4, and since).

    Each prompt has a counterfactual with another answer. The code of the prompt takes the values
    of the counterfactual's at some latents, at all positions, with the SAE's error kept. Latents
    are chosen on one half of the prompts and measured on the other, which shares no name with it.
    Bases, random directions, random sets and the most active latents stand beside
    (docs/guides/causes.md).
    """

    name: ClassVar[str] = "ioi"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "predictions"})
    task: str = setting(
        "ioi", help="ioi, agreement (subject and verb), or a JSONL file of clean_prefix, "
        "patch_prefix, clean_answer, patch_answer",
    )  # fmt: skip
    counterfactual: Counterfactual = setting(
        "io", help="of task=ioi: io another receiver (the paper), s2 the second giver becomes the "
        "receiver, abc three other names",
    )  # fmt: skip
    num_prompts: int = setting(32, ge=4, help="prompts that choose latents, and as many others")
    controls: tuple[str, ...] = setting(
        (), help="trained controls: runs, or sweeps, with a frozen decoder or of a random LM"
    )
    least_accuracy: float = setting(
        LEAST_ACCURACY, ge=0, le=1, help="share of right answers that is asked"
    )

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure the SAE and all controls on the same prompts."""
        (one,) = subjects
        refuse_transcoder(one, self.name)
        point, _ = at_one_point(one)
        halves = self._tasks(one)
        accuracy, studies = [], {}
        with in_float32(one.lm.model):  # before controls are fitted, which takes longer
            for half in halves:
                found = half.check(
                    one.lm, point, one.counted, least=self.least_accuracy,
                    batch_prompts=self.batch_prompts,
                )  # fmt: skip
                accuracy.append(float((found > 0).float().mean()))
        given = given_controls(one, self.controls)
        every = [Decomposition("SAE", one, whole=True)]
        for control in [*fitted_controls(one, _l0(one, on)), *given]:
            every.append(Decomposition(control.name, control.placed))
            if control.name.startswith("pca") and control not in given:
                every.append(Decomposition(f"{control.name} ±", control.placed, split=True))
        with (
            in_float32(one.lm.model),
            progress("patch latents", len(every), "decompositions") as advance,
        ):
            for of in every:
                alike = sum(name.split(" #")[0] == of.name for name in studies)
                name = f"{of.name} #{alike + 1}" if alike else of.name
                studies[name] = self._studied(of, one, halves)
                advance(1)
        return self._result(one, studies, accuracy, halves, missing_controls(one, given))

    def _tasks(self, one: PlacedSAE) -> tuple[Task, Task]:
        return halves_of(
            self.task, one.lm.tokenizer, self.num_prompts, counterfactual=self.counterfactual,
            seed=self.bootstrap.seed,
        )  # fmt: skip

    def _studied(self, of: Decomposition, one: PlacedSAE, halves: tuple[Task, Task]) -> Study:
        """The study of a decomposition, out of the cache where it was made before."""
        decides = set(StudySettings.model_fields) - {"batch_prompts"}
        if not of.whole:
            decides -= {"exact", "penalties", "mask_steps", "mask_prompts"}
        if self.search == "none":
            decides -= {"candidates", "orders", "thresholds"}
        identity = {
            "version": FORMAT_VERSION, "sae": sae_key(of.placed), "split": of.split,
            "whole": of.whole, "point": str(one.point),
            "lm": dict(one.lm.identity), "tasks": [half.key for half in halves],
            "counted": None if one.counted is None else one.counted.to_json(),
            "settings": {name: getattr(self, name) for name in sorted(decides)},
            "bootstrap": self.bootstrap.model_dump(),
        }  # fmt: skip
        file = cache_dir() / "causes" / f"{content_key(identity)}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        return Study(
            **cached_json(file, lambda: studied(of, one, halves, self, self.bootstrap)._asdict())
        )

    def _result(
        self, one: PlacedSAE, studies: Mapping[str, Study], accuracy: Sequence[float],
        halves: tuple[Task, Task], missing: Mapping[str, str],
    ) -> Measured:  # fmt: skip
        own = studies["SAE"]
        named = {
            name: Estimate(None if value is None else float(value))
            for name, value in own.numbers.items()
        }
        for row in own.sets:
            if row["method"] == "attribution" and row["size"] == own.numbers["half_attribution"]:
                named["faithfulness_at_half"] = Estimate(
                    *(row[f"faithfulness{end}"] for end in ("", "_low", "_high"))
                )
        chosen = own.chosen
        return Measured(
            metrics=named,
            tokens={"chosen on": len(halves[0]), "measured on": len(halves[1])},
            details={
                "accuracy": dict(zip(("chooses", "measures"), accuracy, strict=True)),
                "example": own.example, "found": own.found, "missing": dict(missing),
                "features": asdict(feature_set(
                    one, chosen["latents"], chosen["weights"], eval=self.name,
                    task=halves[1].name, method="attribution", kl_empty=own.numbers["kl_empty"],
                    halves_the_kl=own.numbers["half_attribution"] is not None,
                )),
            },
            tables={
                "sets": Table.of(_SETS, [
                    {"decomposition": name, **row} for name, study in studies.items()
                    for row in study.sets
                ]),
                "decompositions": Table.of(_DECOMPOSITIONS, [
                    {"decomposition": name, **study.numbers} for name, study in studies.items()
                ]),
                "latents": Table.of(_LATENTS, own.latents),
            },
        )  # fmt: skip


def _l0(one: PlacedSAE, on: Split) -> float:
    """Mean number of latents that fire, on the first rows."""
    rows = one.rows(on).read(0)[:4096].to(one.sae.device, one.sae.dtype)
    with torch.no_grad():
        fired = [functional.l0(one.sae.encode(part)).sum() for part in rows.split(256)]
    return float(torch.stack(fired).sum()) / len(rows)
