"""`tpp`: do a class's latents hurt that class's probe, and only it?"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import model_validator

from sae.activations.labelled import text_activations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError, SourceError
from sae.evals.base import Measured, Resampled, refuse_transcoder, register, sampled
from sae.interventions import without
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import draws
from sae.probing import linear
from sae.probing.codes import Pooled, pool
from sae.probing.logistic import balanced
from sae.probing.ranking import effects, strongest
from sae.progress import progress
from sae.settings import Count, setting
from sae.tasks.labelled import LabelledTexts, probe_sets, read_csv
from sae.types import Split

THRESHOLDS = (2, 5, 10, 20, 50, 100, 500)
NEWS = ("139_news_class_Politics", "140_news_class_Technology", "141_news_class_Entertainment")


@register
class TPPEval(Resampled):
    """Targeted probe perturbation: accuracies lost when the n strongest latents of a class go.

    For each class i a linear probe tells it from the others. Zeroing the n latents of largest
    max(0, mean f on i - mean f on the others) * (w_i . d_j) changes the accuracy of probe k by
    -D_ik. `intended_diff_only` is the mean of D_ii, `unintended_diff_only` that of D_ik, k != i,
    `total_metric` their difference. Names are SAEBench's.
    """

    name: ClassVar[str] = "tpp"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    sets: tuple[str, ...] = setting(
        NEWS,
        min_length=1,
        help="binary sets of the wheel sae-probes; texts labelled true are a class",
    )
    csv: str = setting(
        "", help="a CSV file with the columns text,label, which takes the place of the sets"
    )
    num_train: int = setting(500, ge=1, help="texts of each class for training")
    num_test: int = setting(250, ge=1, help="texts of each class for testing")
    thresholds: tuple[Count, ...] = setting(
        THRESHOLDS,
        min_length=1,
        help="numbers of latents; those above the SAE's width are left out",
    )
    max_tokens: int = setting(128, ge=2, help="longer texts lose their end")
    seed: int = setting(42, ge=0, help="seed of the draws and the probes")

    @model_validator(mode="after")
    def _classes(self) -> "TPPEval":
        if not self.csv and len(self.sets) < 2:
            raise ConfigError(
                f"eval.tpp.sets={list(self.sets)} must name at least two sets: each is a class."
            )
        return self

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Train a probe for each class, and ablate the strongest latents of each."""
        (placed,) = subjects
        refuse_transcoder(placed, self.name)
        assert placed.point is not None
        texts = self._texts().first_of_each(self.num_train + self.num_test)
        activations = text_activations(
            placed.lm, placed.point, texts.texts, name=texts.name, which="all",
            max_tokens=self.max_tokens,
        )  # fmt: skip
        pooled = pool(placed.sae, activations, placed.counted)
        accuracies = measure(
            pooled, torch.from_numpy(texts.labels), placed.sae.W_dec.cpu(), len(texts.classes),
            num_train=self.num_train, seed=self.seed, bootstrap=self.bootstrap,
            thresholds=[n for n in self.thresholds if n <= placed.sae.d_sae],
        )  # fmt: skip
        per_class = scores(*accuracies)
        means = {
            name: np.mean([one[name] for one in per_class.values()], axis=0)
            for name in per_class[0]
        }
        names = texts.classes
        return Measured(
            metrics=sampled(means, self.bootstrap.level),
            tokens={"classes": len(names), "test texts": len(names) * self.num_test},
            details={
                "dataset": texts.name,
                "clean_accuracy": {names[k]: float(a[0]) for k, a in accuracies[0].items()},
                "classes": {
                    names[i]: {name: float(values[0]) for name, values in one.items()}
                    for i, one in per_class.items()
                },
            },
        )

    def _texts(self) -> LabelledTexts:
        if self.csv:
            found = read_csv(self.csv)
        else:
            texts, classes = [], []
            for one in probe_sets(self.sets):
                members = [t for t, label in zip(one.texts, one.labels, strict=True) if label == 1]
                texts += members
                classes += [one.name] * len(members)
            found = LabelledTexts.of("+".join(self.sets), texts, classes)
        needed = self.num_train + self.num_test
        counts = np.bincount(found.labels)
        if counts.min() < needed:
            raise SourceError(
                f"{found.classes[counts.argmin()]} has {counts.min()} texts; num_train + num_test "
                f"are {needed}. Lower them, or leave the class out."
            )
        return found


Accuracies = dict[int, np.ndarray]
"""By the class of the probe, for each bootstrap draw."""


def measure(
    pooled: Pooled,
    labels: torch.Tensor,
    W_dec: torch.Tensor,
    num_classes: int,
    *,
    num_train: int,
    thresholds: list[int],
    seed: int,
    bootstrap: Bootstrap,
) -> tuple[Accuracies, dict[int, dict[int, Accuracies]]]:
    """Accuracies of all probes, clean, and by ablated class and number of latents.

    The first `num_train` texts of each class train the probes and choose the latents.
    """
    rank = torch.zeros_like(labels)
    for label in range(num_classes):
        rank[labels == label] = torch.arange(int((labels == label).sum()))
    train, test = torch.where(rank < num_train)[0], torch.where(rank >= num_train)[0]
    generator = torch.Generator().manual_seed(seed)
    fitted, tests = {}, {}
    with progress("probe classes", num_classes, "probes") as advance:
        for i in range(num_classes):
            rows, y = balanced(labels[train], i, num_classes, generator)
            part = pooled.of(train[rows])
            probe = linear.train(part.x, y, linear.TEXT_MEANS, seed)
            fitted[i] = (probe, effects(part.f, y, probe, W_dec, only_more=True))
            tests[i] = balanced(labels[test], i, num_classes, generator)
            advance(1)
    weights = draws(len(test), bootstrap.num_resamples, bootstrap.seed)

    def all_probes(x: torch.Tensor) -> Accuracies:
        found = {}
        for k, (rows, y) in tests.items():
            counted = weights[:, rows.numpy()]
            right = fitted[k][0].right(x[rows], y).numpy()
            with np.errstate(invalid="ignore"):
                found[k] = counted @ right / counted.sum(-1)
        return found

    held_out = pooled.of(test)
    ablated: dict[int, dict[int, Accuracies]] = defaultdict(dict)
    with progress("ablate latents", num_classes * len(thresholds), "sets") as advance:
        for i in range(num_classes):
            for n in thresholds:
                ablated[i][n] = all_probes(without(*held_out, strongest(fitted[i][1], n), W_dec))
                advance(1)
    return all_probes(held_out.x), dict(ablated)


def scores(
    clean: Accuracies, ablated: dict[int, dict[int, Accuracies]]
) -> dict[int, dict[str, Any]]:
    """TPP's three numbers for each ablated class and threshold."""
    found: dict[int, dict[str, Any]] = {i: {} for i in ablated}
    for i, by_threshold in ablated.items():
        for n, accuracy in by_threshold.items():
            lost = {k: clean[k] - accuracy[k] for k in clean}
            unintended = np.mean([lost[k] for k in clean if k != i], axis=0)
            found[i] |= {
                f"tpp_threshold_{n}_total_metric": lost[i] - unintended,
                f"tpp_threshold_{n}_intended_diff_only": lost[i],
                f"tpp_threshold_{n}_unintended_diff_only": unintended,
            }
    return found
