"""Logistic regression on the best latents, and balanced sets of examples."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import SourceError

MIN_PER_CLASS = 20
"""Fewer examples of a class make neither a probe nor a score."""
_TRAIN, _MIN_TEST = 1024, 100


class Predictions(NamedTuple):
    """Answers of a probe about test examples.

    Args:
        probability: Probability of class 1.
        predicted: 0 or 1.
    """

    probability: Float[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]


def split(labels: Int[np.ndarray, " n"], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of balanced training and test examples: 1,024 to train, the others to test.

    With fewer than 1,124 examples 100 are left for the test, with fewer than 200 the half. For
    equally large classes the same draw as sae-probes' `get_train_test_indices`.

    Raises:
        SourceError: If a class has fewer than `MIN_PER_CLASS` examples.
    """
    counts = np.bincount(labels, minlength=2)
    if counts.min() < MIN_PER_CLASS:
        raise SourceError(
            f"A class has {counts.min()} examples; a probe needs {MIN_PER_CLASS} of each class."
        )
    total = 2 * counts.min()
    num_train = min(total - _MIN_TEST, _TRAIN) if total >= 2 * _MIN_TEST else total // 2
    num_test = total - num_train - 1  # one less than there are, as in sae-probes
    rng = np.random.RandomState(seed)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    half = -(-num_train // 2)
    train_positive = rng.choice(positive, half, replace=False)
    train_negative = rng.choice(negative, num_train - half, replace=False)
    half = -(-num_test // 2)
    test_positive = rng.choice(np.setdiff1d(positive, train_positive), half, replace=False)
    test_negative = rng.choice(
        np.setdiff1d(negative, train_negative), num_test - half, replace=False
    )
    train = rng.permutation(np.concatenate([train_positive, train_negative]))
    return train, rng.permutation(np.concatenate([test_positive, test_negative]))


def probe(
    x: Float[np.ndarray, "n k"],
    labels: Int[np.ndarray, " n"],
    x_test: Float[np.ndarray, "tests k"],
    seed: int,
) -> Predictions:
    """Logistic regression with an L2 penalty whose C is chosen by AUC on held-out training rows.

    Ten values of C from 1e5 to 1e-5; of 128 rows or more the last fifth (at most 100) is held
    out, of fewer six stratified folds are made.

    Source: sae-probes 0.4.2, `find_best_reg` with `penalty="l2"`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    def fit(C: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=C, random_state=seed, max_iter=1000).fit(x[rows], labels[rows])

    def score(C: float, rows: np.ndarray, held_out: np.ndarray) -> float:
        probability = fit(C, rows).predict_proba(x[held_out])[:, 1]
        return float(roc_auc_score(labels[held_out], probability))

    if len(x) >= 128:
        at = len(x) - min(len(x) // 5, 100)
        folds = [(np.arange(at), np.arange(at, len(x)))]
    else:
        folds = list(StratifiedKFold(6, shuffle=True, random_state=seed).split(x, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # huge C on separable rows
        grid = np.logspace(5, -5, 10)
        best = grid[np.argmax([np.mean([score(C, *fold) for fold in folds]) for C in grid])]
        fitted = fit(best, np.random.RandomState(seed).permutation(len(x)))
    probability = fitted.predict_proba(x_test)[:, 1]
    return Predictions(probability.astype(np.float64), np.asarray(fitted.predict(x_test), np.int64))


def top_probes(
    f: Float[Tensor, "n latents"],
    labels: Int[np.ndarray, " n"],
    f_test: Float[Tensor, "tests latents"],
    ks: Sequence[int],
    seed: int,
) -> dict[int, Predictions]:
    """A probe on the first k columns for each k; columns are ranked already."""
    # In float32, probabilities of weak probes are ties, and the choice of C a matter of rounding.
    x, x_test = f.double().cpu().numpy(), f_test.double().cpu().numpy()
    return {k: probe(x[:, :k], labels, x_test[:, :k], seed) for k in ks}


def sparse_scores(
    f: Float[Tensor, "n k"], y: Float[Tensor, " n"], f_test: Float[Tensor, "tests k"]
) -> Float[Tensor, " tests"]:
    """Logits of a balanced logistic regression on a few latents."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=500, class_weight="balanced").fit(f.numpy(), y.numpy())
    return torch.from_numpy(np.asarray(fitted.decision_function(f_test.numpy()))).float()


def balanced(
    labels: Int[Tensor, " texts"], positive: int, num_classes: int, generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Texts of a class and as many of the others, about evenly; their labels, 1 and 0.

    Source: SAEBench, `prepare_probe_data`; the draw is made once here, not for each ablation.
    """
    own = torch.where(labels == positive)[0]
    share = -(-len(own) // (num_classes - 1))
    others = []
    for label in range(num_classes):
        if label != positive:
            members = torch.where(labels == label)[0]
            others.append(members[torch.randperm(len(members), generator=generator)[:share]])
    drawn = torch.cat(others)
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[: len(own)]]
    return torch.cat([own, drawn]), torch.cat([torch.ones_like(own), torch.zeros_like(drawn)])
