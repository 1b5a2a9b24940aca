"""Scores of a binary classifier, with bootstrap intervals over examples."""

import numpy as np
from jaxtyping import Float, Int

from sae.metrics.bootstrap import Interval, multinomial_weights


def binary_scores(
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    probability: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, "draws n"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    """Accuracy, F1 (mean over both classes, weighted by their sizes) and AUC of weighted examples.

    NaN where a draw lacks a class. The same as scikit-learn's `accuracy_score`,
    `f1_score(average="weighted")` and `roc_auc_score` with `sample_weight`.

    Args:
        labels: 0 or 1.
        predicted: 0 or 1.
        probability: Probability of class 1, or anything that rises with it.
        weights: Number of times that each example counts.

    Example:
        >>> y, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
        >>> scores = binary_scores(y, (p > 0.5).astype(int), p, np.ones((1, 4)))
        >>> {name: float(value[0]) for name, value in scores.items()}
        {'accuracy': 0.5, 'f1': 0.5, 'auc': 0.75}
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(-1)
        f1 = np.zeros_like(total)
        for label in (0, 1):
            support = weights @ (labels == label)
            hits = weights @ ((labels == label) & (predicted == label))
            found = support + weights @ (predicted == label)
            # a class that is neither there nor predicted has a weight of 0, whatever its F1
            f1 += (
                support
                / total
                * np.divide(2 * hits, found, out=np.zeros_like(hits), where=found > 0)
            )
        order = np.argsort(probability, kind="stable")
        ties = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))
        positive = np.add.reduceat((weights * labels)[..., order], ties, axis=-1)
        negative = np.add.reduceat((weights * (1 - labels))[..., order], ties, axis=-1)
        below = negative.cumsum(-1) - negative
        pairs = positive.sum(-1) * negative.sum(-1)
        auc = (positive * (below + 0.5 * negative)).sum(-1) / pairs
    return {"accuracy": weights @ (labels == predicted) / total, "f1": f1, "auc": auc}


def draws(num_examples: int, num_resamples: int, seed: int) -> Float[np.ndarray, "draws n"]:
    """Weights of a bootstrap over examples; the first draw holds every example once."""
    resampled = multinomial_weights(num_examples, num_resamples, seed).numpy()
    return np.concatenate([np.ones((1, num_examples)), resampled])


def draws_within(
    strata: Int[np.ndarray, " n"], num_resamples: int, seed: int
) -> Float[np.ndarray, "draws n"]:
    """Weights of a bootstrap that draws as many examples of each stratum as there are.

    A stratum of one example would never change: where there is one, all are drawn together, as by
    `draws`.

    Args:
        strata: Number of the stratum of each example.
        num_resamples: Draws after the first, which holds every example once.
        seed: Seed of the draws.

    Example:
        >>> draws_within(np.array([0, 0, 1, 1]), 3, seed=0)[:, :2].sum(-1).tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    numbers, counts = np.unique(strata, return_counts=True)
    if counts.min() < 2:
        return draws(len(strata), num_resamples, seed)
    weights = np.empty((num_resamples + 1, len(strata)))
    for i, (number, count) in enumerate(zip(numbers, counts, strict=True)):
        weights[:, strata == number] = draws(int(count), num_resamples, seed + i)
    return weights


def interval(samples: Float[np.ndarray, " draws"], level: float) -> Interval | None:
    """The interval of `level` of the draws but the first; None where some draw is undefined.

    Example:
        >>> interval(np.array([0.5, 0.25, 0.75]), level=1.0)
        (0.25, 0.75)
    """
    if not np.isfinite(samples).all():
        return None
    low, high = np.quantile(samples[1:], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
