"""`scr`: can a spurious correlation be taken out of a probe by its latents?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor

from sae.activations.labelled import text_activations
from sae.artifacts.placed import PlacedSAE
from sae.evals.base import Measured, Resampled, refuse_transcoder, register, sampled
from sae.evals.tpp import THRESHOLDS
from sae.interventions import without
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import draws
from sae.probing.codes import Pooled, pool
from sae.probing.linear import TEXT_MEANS, train
from sae.probing.ranking import effects, strongest
from sae.progress import progress
from sae.settings import Count, setting
from sae.tasks.biographies import PROFESSIONS, Biographies, biographies
from sae.types import Split

_LEAST_GAP = 0.001


@register
class SCREval(Resampled):
    """Spurious correlation removal on made-up biographies by SAEBench's formula.

    A probe learns from texts in which profession and gender agree (male professors, female
    nurses). The n latents of largest |effect| on a gender probe are ablated (direction 1). The
    score is the share of the lost accuracy on profession that this restores:
    (A_ablated - A_biased) / (A_oracle - A_biased), A_oracle a profession probe trained without the
    correlation. Direction 2 swaps the attributes; `scr_metric` is the direction with the lower
    A_biased. A direction that lost less than 0.001 scores 0.
    """

    name: ClassVar[str] = "scr"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    pairs: tuple[str, ...] = setting(
        ("professor/nurse", "architect/journalist", "surgeon/psychologist", "attorney/teacher"),
        min_length=1,
        help="pairs of professions of the templates, first/second",
    )
    thresholds: tuple[Count, ...] = setting(
        THRESHOLDS,
        min_length=1,
        help="numbers of latents; those above the SAE's width are left out",
    )
    seed: int = setting(42, ge=0, help="seed of the probes")

    @field_validator("pairs")
    @classmethod
    def _different(cls, pairs: tuple[str, ...]) -> tuple[str, ...]:
        for pair in pairs:
            words = pair.split("/")
            if len(words) != 2 or words[0] == words[1] or not set(words) <= set(PROFESSIONS):
                raise ValueError(
                    f"pairs of two different of {', '.join(PROFESSIONS)}, with a / between them"
                )
        return pairs

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure every pair."""
        (placed,) = subjects
        refuse_transcoder(placed, self.name)
        samples, details, num_tests = [], {}, 0
        thresholds = [n for n in self.thresholds if n <= placed.sae.d_sae]
        with progress("remove correlations", len(self.pairs), "pairs") as advance:
            for pair in self.pairs:
                pooled, made = self._read(placed, pair)
                train = torch.tensor(made.train)
                labels = {
                    "profession": torch.tensor(made.profession), "gender": torch.tensor(made.gender)
                }  # fmt: skip
                clean, scored = measure(
                    pooled, labels, train, placed.sae.W_dec.cpu(), thresholds=thresholds,
                    seed=self.seed, bootstrap=self.bootstrap, unit=made.name,
                )  # fmt: skip
                samples.append(scored)
                num_tests += int((~train).sum())
                details[pair] = {
                    "clean_accuracy": {name: float(a[0]) for name, a in clean.items()},
                    "metrics": {name: float(values[0]) for name, values in scored.items()},
                }
                advance(1)
        means = {name: np.mean([one[name] for one in samples], axis=0) for name in samples[0]}
        return Measured(
            metrics=sampled(means, self.bootstrap.level),
            tokens={"pairs": len(self.pairs), "test texts": num_tests},
            details={"pairs": details},
        )

    def _read(self, placed: PlacedSAE, pair: str) -> tuple[Pooled, Biographies]:
        assert placed.point is not None
        first, second = pair.split("/")
        made = biographies((first, second))
        activations = text_activations(
            placed.lm, placed.point, made.texts, name=pair, which="all", max_tokens=128
        )
        return pool(placed.sae, activations, placed.counted), made


def measure(
    pooled: Pooled,
    labels: Mapping[str, Tensor],
    for_training: Tensor,
    W_dec: Tensor,
    *,
    thresholds: list[int],
    seed: int,
    bootstrap: Bootstrap,
    unit: Sequence[str] | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Clean accuracies and SCR's scores, each for every bootstrap draw.

    Args:
        pooled: All texts.
        labels: `profession` and `gender`, 1 or 0 for each text; all four combinations as often.
        for_training: Texts for training; the others test.
        W_dec: Decoder.
        thresholds: Numbers of latents.
        seed: Seed of the probes.
        bootstrap: Settings of the draws of units, which are names or texts of the test.
        unit: Name in each text, whose texts are drawn together; None: each text is a unit.
    """
    fit = pooled.of(torch.where(for_training)[0])
    y = {name: label[for_training] for name, label in labels.items()}
    agree = torch.where(y["profession"] == y["gender"])[0]
    biased = train(fit.x[agree], y["gender"][agree], TEXT_MEANS, seed)
    oracle = {name: train(fit.x, label, TEXT_MEANS, seed) for name, label in y.items()}

    held_out = pooled.of(torch.where(~for_training)[0])
    of = np.arange(len(labels["gender"])) if unit is None else np.array(unit)
    units, number = np.unique(of[~for_training.numpy()], return_inverse=True)
    weights = draws(len(units), bootstrap.num_resamples, bootstrap.seed)[:, number]

    def accuracy(probe: Any, x: Tensor, name: str) -> np.ndarray:
        return weights @ probe.right(x, labels[name][~for_training]).numpy() / weights.sum(-1)

    clean = {name: accuracy(oracle[name], held_out.x, name) for name in labels}
    clean |= {f"biased_{name}": accuracy(biased, held_out.x, name) for name in labels}
    lower = 1 if clean["biased_profession"][0] <= clean["biased_gender"][0] else 2
    scored: dict[str, Any] = {}
    for direction, kept, removed in ((1, "profession", "gender"), (2, "gender", "profession")):
        effect = effects(fit.f, y[removed], oracle[removed], W_dec, only_more=False).abs()
        base = clean[f"biased_{kept}"]
        gap = clean[kept] - base
        for n in thresholds:
            x = without(*held_out, strongest(effect, n), W_dec)
            won = accuracy(biased, x, kept) - base
            with np.errstate(invalid="ignore", divide="ignore"):
                score = np.where(gap < _LEAST_GAP, 0.0, won / gap)
            scored[f"scr_dir{direction}_threshold_{n}"] = score
            if direction == lower:
                scored[f"scr_metric_threshold_{n}"] = score
    return clean, scored
