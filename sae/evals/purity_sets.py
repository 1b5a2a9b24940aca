"""Purity by labelled sets: whether the latents that fire in a text tell the text's class."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae.activations.labelled import TextActivations, text_activations, token_ids
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.base import Estimate
from sae.evals.controls import Control
from sae.explanations.means import mean
from sae.features.compared import COMPARED, Dictionary, compared, mean_over_latents, named
from sae.features.firings import firings_on
from sae.features.labelled_text import LabelledText, RowLabels
from sae.features.purity import MIN_CONTEXTS, chance, purities
from sae.language.lm import LanguageModel
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Type
from sae.tasks.labelled import LabelledTexts

log = logging.getLogger(__name__)
LOOKUP = "token lookup"
SET_NUMBERS = ("class_given_token", "class_purity", "class_entropy", "class_bits")
"""Numbers of a latent that dictionaries are compared by."""
SET_METRICS = SET_NUMBERS[:2]
"""Numbers whose means over sets are metrics."""
LEAST_SETS = 10
"""Sets from which on means over them have intervals: those of a few are their smallest and
largest."""
SET_COLUMNS: Mapping[str, tuple[Type, str]] = {"set": ("string", ""), **COMPARED}


class OfSet(NamedTuple):
    """Purity by the classes of a set.

    Args:
        means: Means over the latents of the SAE and its seeds, with intervals over texts.
        rows: Rows of a table: the SAE beside each control.
        facts: Sizes, means and chance, plain JSON values.
    """

    means: Mapping[str, Estimate]
    rows: list[dict[str, Any]]
    facts: Mapping[str, Any]


def measured_set(
    labelled: LabelledTexts, saes: Sequence[Control], controls: Sequence[Control], *,
    max_tokens: int, shuffles: int, batch_rows: int, bootstrap: Bootstrap,
) -> OfSet | None:  # fmt: skip
    """Measure dictionaries on a set; each LM reads its texts once.

    Args:
        labelled: The set.
        saes: The SAE and its other seeds.
        controls: Controls. Those with dense codes are left out: their latents fire in every text.
        max_tokens: Longer texts lose their end.
        shuffles: Number of times that classes are shuffled over the texts of each token.
        batch_rows: Rows encoded at once.
        bootstrap: Settings of the intervals.

    Returns:
        What was measured; None, with a warning, if no latent of the SAE fires in enough texts.
    """
    texts = _Texts(labelled, saes[0].placed, max_tokens)
    text = texts.by_row(shuffles)

    def measured(of: Control) -> Dictionary:
        sae, read = of.placed.sae, texts.read(of.placed)
        found = firings_on(sae, read.x, _counts(of.placed, read), batch_rows)
        numbers = purities(text, named(enumerate(found), sae.d_sae, text))
        return Dictionary(of.name, numbers, len(text.rows), {})

    ours = [measured(of) for of in saes]
    if not ours[0].found.latent:
        log.warning(
            "left out: %s, in whose %d different texts no latent fires in %d. Read more texts "
            "(eval.purity.max_texts), or choose another set.",
            labelled.name, text.num_documents, MIN_CONTEXTS,
        )  # fmt: skip
        return None
    others = [measured(of) for of in controls if not of.dense]
    others.append(Dictionary(LOOKUP, purities(text, text.lookup()), len(text.rows), {}))
    means = {name: estimate(ours, name, bootstrap) for name in SET_NUMBERS}
    counts = np.bincount(labelled.labels, minlength=len(labelled.classes)).tolist()
    facts = {
        "name": labelled.name, "texts": text.num_documents, "vectors": len(text.rows),
        "classes": dict(zip(labelled.classes, counts, strict=True)),
        "latents": len(ours[0].found.latent), "too_rare": ours[0].found.rare,
        "means": {name: asdict(of) for name, of in means.items()}, "chance": chance(text),
    }  # fmt: skip
    rows = compared(ours, others, SET_NUMBERS, bootstrap)
    return OfSet(means, [{"set": labelled.name, **row} for row in rows], facts)


def different(labelled: LabelledTexts) -> Int[np.ndarray, " texts"]:
    """Number of each text among the different ones; equal texts of two classes differ.

    Example:
        >>> different(LabelledTexts.of("abc", ["a", "b", "a", "a"], ["x", "x", "x", "y"])).tolist()
        [0, 1, 0, 2]
    """
    known: dict[tuple[str, int], int] = {}
    pairs = zip(labelled.texts, labelled.labels.tolist(), strict=True)
    return np.array([known.setdefault(pair, len(known)) for pair in pairs])


def require_enough(labelled: LabelledTexts) -> None:
    """Refuse a set in which no latent can fire in enough texts.

    Raises:
        ConfigError: If it has fewer different texts than a latent must fire in.
    """
    texts = len(np.unique(different(labelled)))
    if texts < MIN_CONTEXTS:
        raise ConfigError(
            f"{labelled.name} has {texts} different texts; {MIN_CONTEXTS} or more are needed, "
            "since a latent that fires in fewer is not measured. Give more texts."
        )


def estimate(dictionaries: Sequence[Dictionary], number: str, bootstrap: Bootstrap) -> Estimate:
    """Mean over latents (and seeds), with its interval over documents."""
    found = mean_over_latents(dictionaries, number)
    if found is None:
        return Estimate(None)
    return Estimate(found.value, *(found.interval(bootstrap) or ()))


def over_sets(found: Sequence[OfSet], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Means over sets, with intervals over `LEAST_SETS` or more.

    A single set has its own interval, over its texts; a few sets have none.
    """
    if len(found) == 1:
        return {name: found[0].means[name] for name in SET_METRICS}
    values = {name: [of.means[name].value for of in found] for name in SET_METRICS}
    means = {name: mean(np.array(of, float), bootstrap) for name, of in values.items()}
    if len(found) < LEAST_SETS:
        return {name: Estimate(of.value) for name, of in means.items()}
    return {name: Estimate(*of) for name, of in means.items()}


class _Texts:
    """The texts of a set, read once by each LM, at the point of an SAE."""

    def __init__(self, labelled: LabelledTexts, one: PlacedSAE, max_tokens: int):
        self.labelled, self.one, self.max_tokens = labelled, one, max_tokens
        self._read: dict[LanguageModel, TextActivations] = {}

    def read(self, of: PlacedSAE) -> TextActivations:
        """Activations of the LM that a dictionary is of."""
        lm = self.one.lm if of.source.source == self.one.source.source else of.lm
        if lm not in self._read:
            assert of.point is not None
            self._read[lm] = text_activations(
                lm, of.point, self.labelled.texts, name=self.labelled.name, which="all",
                max_tokens=self.max_tokens,
            )  # fmt: skip
        return self._read[lm]

    def by_row(self, shuffles: int) -> LabelledText:
        """The texts with their classes; equal texts of a class are one document."""
        read, texts = self.read(self.one), self.labelled.texts
        of = np.repeat(np.arange(len(texts)), read.lengths.numpy())
        number = different(self.labelled)
        ids = token_ids(self.one.lm, texts, which="all", max_tokens=self.max_tokens)
        # Classes that take turns would otherwise have groups of documents of their own.
        document = np.random.default_rng(0).permutation(number.max() + 1)[number][of]
        classes = RowLabels(self.labelled.labels[of], self.labelled.classes, whole=True)
        return LabelledText(
            np.concatenate([np.asarray(own, np.int64) for own in ids]), document, document,
            _counts(self.one, read).numpy(), {"class": classes}, shuffles=shuffles,
        )  # fmt: skip


def _counts(of: PlacedSAE, read: TextActivations) -> Bool[Tensor, " rows"]:
    """Mask of the rows that count; no text has a special token."""
    if of.counted is None:
        return torch.ones(len(read.x), dtype=torch.bool)
    return of.counted.mask([read.x], None)
