"""`sparse_probing`: how much of a labelled concept one, two or a few latents hold."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor

from sae.activations.labelled import text_activations
from sae.artifacts.placed import PlacedSAE
from sae.cached import Made, cached
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError, SourceError
from sae.evals.base import Measured, Resampled, register, sampled
from sae.metrics.classification import binary_scores, draws
from sae.probing.codes import encode, principal_components, random_sae
from sae.probing.logistic import Predictions, split, top_probes
from sae.probing.ranking import rank
from sae.progress import progress
from sae.settings import Count, setting
from sae.tasks.labelled import LabelledTexts, probe_sets, read_csv
from sae.types import Split

TEN_SETS = (
    "5_hist_fig_ismale", "24_headline_isiran", "66_living-room", "87_glue_cola", "92_glue_sst2",
    "96_spam_is", "105_click_bait", "126_art_type_book", "149_twt_emotion_happiness",
    "155_athlete_sport_basketball",
)  # fmt: skip
"""People, news, bigrams, grammar, sentiment, spam, style, art, emotion, sport: short texts."""
_SHOWN_LATENTS = 16


@register
class SparseProbingEval(Resampled):
    """AUC, F1 and accuracy of logistic regression on the k best latents, and on what rivals them.

    The protocol of sae-probes (Kantamneni et al. 2025, arXiv 2502.16681) in its `normal` setting
    with an L2 penalty: the activation of each text's last token that counts (of its last token
    there); 1,024 balanced texts to train, the others to test; latents ranked by their normalised
    mean difference on the training texts.
    Beside the SAE's latents stand the whole activation (`llm`), its single dimensions
    (`neurons`), its principal components (`pca`) and a random dictionary of as many latents of
    which as many fire (`random`), the last three ranked in the same way.
    """

    name: ClassVar[str] = "sparse_probing"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    sets: tuple[str, ...] = setting(
        TEN_SETS, min_length=1, help="binary sets in the wheel sae-probes; all: all 113"
    )
    csv: str = setting(
        "", help="a CSV file with the columns text,label (two classes), which then is the only set"
    )
    ks: tuple[Count, ...] = setting((1, 2, 5, 16), min_length=1, help="numbers of latents")
    max_examples: int = setting(
        5000, ge=2, help="texts of a set, the first of both classes; no set has more than 5,000"
    )
    max_tokens: int = setting(1024, ge=2, help="longer texts lose their beginning")
    seed: int = setting(42, ge=0, help="seed of the split, the probes and the random dictionary")

    @field_validator("sets")
    @classmethod
    def _all_alone(cls, sets: tuple[str, ...]) -> tuple[str, ...]:
        if "all" in sets and len(sets) > 1:
            raise ValueError("names of sets, or all alone: sets=[all]")
        return sets

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure every set."""
        (placed,) = subjects
        if max(self.ks) > placed.sae.d_sae:
            raise ConfigError(
                f"ks={list(self.ks)} must be at most {placed.sae.d_sae}, the number of latents."
            )
        sets = [read_csv(self.csv)] if self.csv else probe_sets(self.sets)
        for one in sets:
            if len(one.classes) != 2:
                raise SourceError(
                    f"{one.name} has {len(one.classes)} classes; sparse_probing takes two. "
                    "eval=[tpp] takes more."
                )
        details: dict[str, Any] = {}
        samples: list[dict[str, np.ndarray]] = []
        num_tests = 0
        with progress("sparse probing", len(sets), "sets") as advance:
            for one in sets:
                drawn, detail = self._measure(placed, one.first_of_each(self.max_examples // 2))
                samples.append(drawn)
                details[one.name] = detail
                num_tests += detail["num_test"]
                advance(1)
        means = {name: np.mean([one[name] for one in samples], axis=0) for name in samples[0]}
        return Measured(
            metrics=sampled(means, self.bootstrap.level),
            tokens={"sets": len(sets), "test texts": num_tests},
            details={"sets": details},
        )

    def _measure(
        self, placed: PlacedSAE, one: LabelledTexts
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Resampled scores of every probe on one set, and its details."""
        assert placed.point is not None
        train, test = split(one.labels, self.seed)
        y, y_test = one.labels[train], one.labels[test]
        x = text_activations(
            placed.lm, placed.point, one.texts, name=one.name, which="last",
            max_tokens=self.max_tokens, counted=placed.counted,
        ).x.float()  # fmt: skip
        x_train, x_test = x[train], x[test]
        f = encode(placed.sae, x_train)
        l0 = float((f != 0).sum(-1).float().mean())
        rival = random_sae(placed.sae, l0, x_train.mean(0), self.seed)
        predictions = self._of_latents("sae", placed.sae, f, y, x_test)
        predictions |= self._of_latents("random", rival, encode(rival, x_train), y, x_test)
        predictions |= self._of_lm(placed, one, x_train, y, x_test)

        weights = draws(len(y_test), self.bootstrap.num_resamples, self.bootstrap.seed)
        drawn = {
            f"{probe}_{score}": values
            for probe, (probability, predicted) in predictions.items()
            for score, values in binary_scores(y_test, predicted, probability, weights).items()
        }
        return drawn, {
            "classes": list(one.classes),
            "num_train": len(y),
            "num_test": len(y_test),
            "latents": rank(f, y)[:_SHOWN_LATENTS].tolist(),
            "l0": l0,
            "metrics": {n: asdict(e) for n, e in sampled(drawn, self.bootstrap.level).items()},
        }

    def _of_latents(
        self, word: str, sae: SAE, f: Tensor, y: np.ndarray, x_test: Tensor
    ) -> dict[str, Predictions]:
        top = rank(f, y)[: max(self.ks)]
        probes = top_probes(f[:, top], y, encode(sae, x_test, top), self.ks, self.seed)
        return {f"{word}_top_{k}": found for k, found in probes.items()}

    def _of_lm(
        self, placed: PlacedSAE, one: LabelledTexts, x: Tensor, y: np.ndarray, x_test: Tensor
    ) -> dict[str, Predictions]:
        """Probes that no SAE takes part in: kept for the next one."""
        ks = [k for k in self.ks if k <= placed.sae.d_in]
        identity = {
            "probes": 2, "lm": dict(placed.lm.identity), "dtype": str(placed.lm.dtype),
            "point": str(placed.point), "set": one.key, "seed": self.seed, "ks": ks,
            "max_tokens": self.max_tokens,
        }  # fmt: skip
        if placed.counted is not None:
            identity["limits"] = placed.counted.to_json()["limits"]

        def make() -> Made:
            found = {"llm": top_probes(x, y, x_test, [x.shape[1]], self.seed)[x.shape[1]]}
            components = principal_components(x, x_test)
            for word, (v, v_test) in {"neurons": (x, x_test), "pca": components}.items():
                top = rank(v, y)
                probes = top_probes(v[:, top], y, v_test[:, top], ks, self.seed)
                found |= {f"{word}_top_{k}": made for k, made in probes.items()}
            return {
                f"{word}.{part}": torch.from_numpy(getattr(made, part))
                for word, made in found.items()
                for part in Predictions._fields
            }, None

        tensors, _ = cached("labelled/", identity, make)
        words = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        return {
            word: Predictions(*(tensors[f"{word}.{part}"].numpy() for part in Predictions._fields))
            for word in words
        }
