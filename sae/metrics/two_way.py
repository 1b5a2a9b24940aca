"""Scores of telling two classes apart, on weighted examples; and areas of curves."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from sae.metrics.classification import binary_scores

Draws = Float[np.ndarray, " draws"]


def answers(
    score: Float[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    threshold: float,
    weights: Float[np.ndarray, "draws n"],
) -> dict[str, Draws]:
    """Scores of answers between two words.

    Args:
        score: Logit of the word of class 1 less that of the word of class 0.
        labels: 1 or 0.
        threshold: The median score of training examples.
        weights: Number of times that each example counts.

    Returns:
        Mean two-way probability of the right word, balanced accuracy at 0 (`balanced_accuracy`)
        and at the threshold (`calibrated_accuracy`), `auc`, and the mean logit difference right
        less wrong.
    """
    right = np.where(labels == 1, score, -score)
    probability = np.exp(-np.logaddexp(0, -right))
    total = weights.sum(-1)
    predicted = (score > 0).astype(int)
    return {
        "probability": weights @ probability / total,
        "balanced_accuracy": balanced_accuracy(predicted, labels, weights),
        "auc": binary_scores(labels, predicted, score, weights)["auc"],
        "calibrated_accuracy": balanced_accuracy(score > threshold, labels, weights),
        "logit_difference": weights @ right / total,
    }


def balanced_accuracy(
    predicted: np.ndarray, labels: Int[np.ndarray, " n"], weights: Float[np.ndarray, "draws n"]
) -> Draws:
    """Mean over both classes of the share that is right; NaN where a draw lacks a class.

    Example:
        >>> y, weights = np.array([0, 0, 0, 1]), np.ones((1, 4))
        >>> balanced_accuracy(np.zeros(4, int), y, weights).tolist()
        [0.5]
    """
    shares = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for label in (0, 1):
            own = weights * (labels == label)
            shares.append(own @ (predicted == label) / own.sum(-1))
    return np.mean(shares, axis=0)


def area(x: Sequence[float], y: Sequence[Draws], budget: float) -> Draws:
    """Mean height of a curve from 0 to a budget.

    The curve starts at (0, 0), joins its points by straight lines, never falls (a weaker edit is
    always at hand), and goes on flat after its last point.

    Args:
        x: Costs of the points, for example KL.
        y: Gains at the points, for each draw.
        budget: Largest cost, above 0.

    Example:
        >>> area([1.0, 2.0], [np.array([1.0]), np.array([0.5])], 2.0).tolist()
        [0.75]
    """
    order = np.argsort(x, kind="stable")
    costs = np.concatenate([[0.0], np.asarray(x, float)[order]])
    gains = np.maximum.accumulate(np.stack([np.zeros_like(y[0]), *(y[i] for i in order)]), axis=0)
    inside = costs < budget
    at = np.concatenate([costs[inside], [budget]])
    end = np.stack([np.interp(budget, costs, column) for column in gains.T])
    heights = np.concatenate([gains[inside], end[None]])
    return np.trapezoid(heights, at, axis=0) / budget
