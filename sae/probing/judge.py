"""A judge of texts: the probability that a text has a concept, by its words alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sae.errors import ConfigError
from sae.metrics.classification import binary_scores
from sae.metrics.two_way import balanced_accuracy
from sae.probing.logistic import MIN_PER_CLASS
from sae.tasks.labelled import LabelledTexts

LEAST_AUC = 0.7
"""AUC on held-out texts under which a judge knows too little."""
_C = 10.0  # of 1, 3, 10 and 30 near the least log loss on held-out snippets of three sets


@dataclass(frozen=True)
class Judge:
    """Logistic regression on TF-IDF of words, fitted to labelled texts.

    It reads text. Activations of the LM that wrote the text are never shown to it.

    A text none of whose words it knows has a probability of exactly .5: there is no constant. It
    leaves out English function words, which tell one kind of news from another and say nothing
    about text of another kind.

    Attributes:
        accuracy: Balanced accuracy on held-out texts.
        auc: AUC on held-out texts.
        num_train: Training texts.
        num_test: Held-out texts.
    """

    accuracy: float
    auc: float
    num_train: int
    num_test: int
    _pipeline: Any

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " texts"]:
        """Probability of class 1, the concept, for each text."""
        return np.asarray(self._pipeline.predict_proba(list(texts))[:, 1], np.float64)

    @classmethod
    def fit(cls, train: LabelledTexts, test: LabelledTexts) -> "Judge":
        """Fit to texts of both classes, each class with the same weight.

        Args:
            train: Training texts; class 1 is the concept.
            test: Held-out texts.

        Raises:
            ConfigError: If a class has too few texts, the texts have no words, or the judge is
                hardly better than chance on held-out texts.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        for side, texts in (("training", train), ("held-out", test)):
            counts = np.bincount(texts.labels, minlength=2)
            if counts.min() < MIN_PER_CLASS:
                raise ConfigError(
                    f"{train.name} leaves {counts[1]} {side} snippets of the concept and "
                    f"{counts[0]} of other texts; a judge needs {MIN_PER_CLASS} of each. Give "
                    "more texts."
                )
        pipeline = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, min_df=2, stop_words="english"),
            LogisticRegression(C=_C, max_iter=1000, class_weight="balanced", fit_intercept=False),
        )
        try:
            pipeline.fit(train.texts, train.labels)
        except ValueError as error:  # scikit-learn: no word is left
            raise ConfigError(
                f"The judge of {train.name} is empty: no word of two letters, but words like "
                f'"the", stands in two texts ({error}). Give texts in words.'
            ) from None
        probability = np.asarray(pipeline.predict_proba(test.texts)[:, 1], np.float64)
        predicted, once = (probability > 0.5).astype(np.int64), np.ones((1, len(probability)))
        auc = float(binary_scores(test.labels, predicted, probability, once)["auc"][0])
        if not auc >= LEAST_AUC:
            raise ConfigError(
                f"The judge of {train.name} has an AUC of {auc:.2f} on held-out texts; at least "
                f"{LEAST_AUC:g} is asked, or its scores mean nothing. Choose another concept, or "
                "give more texts."
            )
        accuracy = float(balanced_accuracy(predicted, test.labels, once)[0])
        return cls(accuracy, auc, len(train.texts), len(test.texts), pipeline)
