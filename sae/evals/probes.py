"""Linear probes on activations: splits, ranking of latents, logistic regression."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import SourceError

MIN_PER_CLASS = 20
"""Fewer examples of a class make neither a probe nor a score."""
_TRAIN, _MIN_TEST = 1024, 100
_EPS = 1e-6


class Predictions(NamedTuple):
    """What a probe says about test examples.

    Args:
        probability: Of class 1.
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


def rank(f: Float[Tensor, "n latents"], labels: Int[np.ndarray, " n"]) -> Int[Tensor, " latents"]:
    r"""Latents by $|\bar f_{j|1} - \bar f_{j|0}| / m_j$, the largest first.

    $m_j$ is the mean of $|f_j|$ where the latent fires, so that rare and frequent, strong and weak
    latents compare.

    Source: sae-probes 0.4.2, `get_sorted_indices` with `mean_act_normalization`.

    Example:
        >>> rank(torch.tensor([[0.0, 1.0], [5.0, 1.0]]), np.array([0, 1])).tolist()
        [0, 1]
    """
    mean = f.abs().sum(0) / ((f != 0).sum(0) + _EPS)
    normalised = f / (mean + _EPS)
    positive = torch.from_numpy(labels == 1).to(f.device)
    difference = normalised[positive].mean(0) - normalised[~positive].mean(0)
    return difference.abs().argsort(descending=True)


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


@torch.no_grad()
def encode(
    sae: SAE, x: Float[Tensor, "n d_in"], columns: Tensor | None = None, batch_rows: int = 512
) -> Float[Tensor, "n latents"]:
    """Feature activations on the CPU: of all latents, or of some, in their order."""
    parts = []
    for rows in x.split(batch_rows):
        f = sae.encode(rows.to(sae.device)).float()
        parts.append((f if columns is None else f[:, columns.to(f.device)]).cpu())
    return torch.cat(parts)


def random_sae(sae: SAE, l0: float, mean: Float[Tensor, " d_in"], seed: int) -> SAE:
    """Random unit directions as encoder and decoder; as many latents, as many of them firing.

    Args:
        sae: Decides the widths.
        l0: Latents to fire at each vector, rounded.
        mean: What is subtracted first.
        seed: Of the directions.
    """
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(sae.d_sae, sae.d_in, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    k = min(max(1, round(l0)), sae.d_sae)
    return SAE(
        W_enc=W_dec.T.contiguous(), b_enc=-(W_dec @ mean), W_dec=W_dec, b_dec=mean,
        config=SAEConfig("random", "topk", sae.d_in, sae.d_sae, k=k),
    ).to(sae.device)  # fmt: skip


def principal_components(
    x: Float[Tensor, "n d_in"], x_test: Float[Tensor, "tests d_in"]
) -> tuple[Tensor, Tensor]:
    """Coordinates on the principal components of `x`, those of largest variance first."""
    mean = x.mean(0)
    _, _, axes = torch.linalg.svd(x - mean, full_matrices=False)
    return (x - mean) @ axes.T, (x_test - mean) @ axes.T
