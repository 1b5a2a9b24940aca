"""Both texts with the properties that rules are made of."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Bool

from sae.errors import ConfigError
from sae.explanations.excerpts import PlacedText
from sae.explanations.explainers import TrainingText
from sae.explanations.rules import RuleText, of_labels
from sae.tasks.tagged import require_tagger, token_labels


def rule_texts(
    texts: tuple[PlacedText, PlacedText], allowed: Bool[np.ndarray, " places"]
) -> tuple[TrainingText, RuleText]:
    """The training and the test text with their properties; labels if the tagger is installed.

    Args:
        texts: The training and the test text.
        allowed: Places of the test text that are scored.
    """
    found = []
    for text, places in zip(texts, (texts[0].counted, allowed), strict=True):
        labels: dict[str, tuple[np.ndarray, Sequence[str]]] = {}
        with suppress(ConfigError):
            require_tagger()
            tagged = token_labels(text.text.tokens, text.document, text.vocabulary)
            labels = {name: (one.of.ravel(), one.names) for name, one in tagged.items()}
        found.append(RuleText(text, places, of_labels(labels)))
    return TrainingText(texts[0], found[0]), found[1]
