"""What `absorption` computes of activations, codes and letters.

Formulas and constants of SAEBench 0.6.0 (`evals/absorption`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import SourceError
from sae.evals.spelling import LETTERS
from sae.progress import progress

_EPS = 1e-8
_FULL_COSINE, _COSINE = 0.025, 0.1
_SHARE, _MAX_ABSORBERS = 0.4, 3
_EPOCHS, _LR, _LAST_LR = 50, 1e-2, 1e-5
_OF_ACTIVATION = {"batch_rows": 64, "weight_decay": 1e-4, "l1": 0.0}
# SAEBench's 4,096 rows are two steps an epoch for 8,000 words, which is no training.
_OF_LATENTS = {"batch_rows": 256, "weight_decay": 1e-6, "l1": 0.01}


class Probes(NamedTuple):
    """A linear classifier for each class, against all others; yes where it is positive."""

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return x @ self.weight.T + self.bias


class Letter(NamedTuple):
    """What was found for one letter.

    Args:
        letter: In lower case.
        num_test: Test words that begin with it.
        probe_f1: Of the probe on the activation.
        latents: Of the letter: those that the best k-sparse probe reads.
        sae_f1: Of the k-sparse probes, k = 1, 2, ….
        fraction: Absorption fraction of each test word that the probe on the activation finds.
        full: Whether such a word is fully absorbed.
    """

    letter: str
    num_test: int
    probe_f1: float
    latents: list[int]
    sae_f1: list[float]
    fraction: Float[Tensor, " words"]
    full: Bool[Tensor, " words"]

    def details(self) -> dict[str, Any]:
        """Plain numbers, by SAEBench's names where it has them; None without such a word."""
        found = len(self.full)
        return {
            "num_test": self.num_test,
            "probe_f1": self.probe_f1,
            "latents": self.latents,
            "sae_f1": self.sae_f1,
            "mean_absorption_fraction": float(self.fraction.mean()) if found else None,
            "full_absorption_rate": float(self.full.double().mean()) if found else None,
            "num_full_absorption": int(self.full.sum()),
            "num_probe_true_positives": found,
            "num_split_features": len(self.latents),
        }


Words = tuple[Float[Tensor, "_ d_in"], Float[Tensor, "_ d_sae"], Int[Tensor, " _"]]
"""Activations of words, their codes and the positions of their first letters."""


def measure(
    W_dec: Float[Tensor, "d_sae d_in"],
    train: Words,
    test: Words,
    *,
    max_k: int,
    f1_jump: float,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[list[Letter], Bool[Tensor, " tests"]]:
    """Every letter that training and test words begin with, and which test words are read right.

    Args:
        W_dec: Decoder.
        train: Words that the probes learn from.
        test: Words that are measured.
        max_k: Latents that a letter may have.
        f1_jump: F1 that each further one must add.
        seed: Of the probes.
        device: Where they are trained.

    Raises:
        SourceError: If there is only one such letter.
    """
    (x, f, labels), (x_test, f_test, labels_test) = train, test
    present = sorted(set(labels.tolist()) & set(labels_test.tolist()))
    if len(present) < 2:
        raise SourceError(
            f"Training and test words have {len(present)} first letters in common; absorption "
            "needs two or more. Raise eval.absorption.num_words, or take another LM."
        )
    y = (labels[:, None] == torch.tensor(present)).float()
    probes = train_probes(x, y, "probes of letters", seed, device, **_OF_ACTIVATION)
    by_l1 = train_probes(f, y, "latents of letters", seed, device, **_OF_LATENTS)
    scores = probes(x_test)
    W_dec = W_dec.float().cpu()
    letters = []
    with progress("first letters", len(present), "letters") as advance:
        for i, label in enumerate(present):
            y_test = labels_test == label
            # not of largest |weight|: a latent of the letter speaks for it
            order = by_l1.weight[i].topk(max_k).indices
            sae_f1 = [
                f1(y_test, sparse_scores(f[:, order[:k]], y[:, i], f_test[:, order[:k]]) > 0)
                for k in range(1, max_k + 1)
            ]
            latents = order[: num_split(sae_f1, f1_jump)]
            found = y_test & (scores[:, i] > 0)
            fraction, full = absorbed(
                x_test[found], f_test[found], W_dec, probes.weight[i], latents
            )
            letters.append(
                Letter(
                    LETTERS[label],
                    int(y_test.sum()),
                    f1(y_test, scores[:, i] > 0),
                    latents.tolist(),
                    sae_f1,
                    fraction,
                    full,
                )  # fmt: skip
            )
            advance(1)
    return letters, torch.tensor(present)[scores.argmax(-1)] == labels_test


def train_probes(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n classes"],
    title: str,
    seed: int,
    device: torch.device | str = "cpu",
    *,
    batch_rows: int,
    weight_decay: float,
    l1: float,
) -> Probes:
    """Adam, 50 epochs, rate 1e-2 falling to 1e-5; positives weigh as much as negatives.

    Args:
        x: Inputs.
        y: 1 where a row belongs to a class, of which each has some; else 0.
        title: For people.
        seed: Of the start and the batches.
        device: Where it is trained; the probes come back to the CPU.
        batch_rows: Rows of a batch.
        weight_decay: Adam's.
        l1: Weight of the mean over classes of sum |weight|.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5
    start = torch.empty(y.shape[1], x.shape[1] + 1).uniform_(-bound, bound, generator=generator)
    weight = start[:, :-1].to(device).clone().requires_grad_()
    bias = start[:, -1].to(device).clone().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=_LR, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.ExponentialLR(
        optimizer, gamma=(_LAST_LR / _LR) ** (1 / _EPOCHS)
    )
    positives = y.sum(0)
    loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=((len(y) - positives) / positives).to(device))
    with torch.enable_grad(), progress(title, _EPOCHS, "epochs") as advance:
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(x), generator=generator).split(batch_rows):
                logits = x[batch].to(device) @ weight.T + bias
                loss = loss_of(logits, y[batch].to(device))
                if l1:
                    loss = loss + l1 * weight.abs().sum(-1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            advance(1)
    return Probes(weight.detach().cpu(), bias.detach().cpu())


def sparse_scores(
    f: Float[Tensor, "n k"], y: Float[Tensor, " n"], f_test: Float[Tensor, "tests k"]
) -> Float[Tensor, " tests"]:
    """Logits of a balanced logistic regression on a few latents."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(max_iter=500, class_weight="balanced").fit(f.numpy(), y.numpy())
    return torch.from_numpy(np.asarray(fitted.decision_function(f_test.numpy()))).float()


def f1(y: Bool[Tensor, " n"], predicted: Bool[Tensor, " n"]) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is right.

    Example:
        >>> f1(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        0.6666666666666666
    """
    return 2 * int((y & predicted).sum()) / max(1, int(y.sum()) + int(predicted.sum()))


def num_split(f1_by_k: Sequence[float], jump: float) -> int:
    """How many latents a feature is split into: each further one must add more than `jump`.

    Example:
        >>> num_split([0.5, 0.6, 0.62, 0.9], jump=0.03)
        2
    """
    for k in range(1, len(f1_by_k)):
        if f1_by_k[k] <= f1_by_k[k - 1] + jump:
            return k
    return len(f1_by_k)


def absorbed(
    x: Float[Tensor, "n d_in"],
    f: Float[Tensor, "n d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    direction: Float[Tensor, " d_in"],
    latents: Int[Tensor, " main"],
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    r"""Absorption fraction of each row, and whether it is fully absorbed.

    With $w$ the probe's unit direction and $p_j = f_j\,(w \cdot d_j)$ what latent $j$ adds to it:

    - full: no main latent fires; the latent of largest $p_j$ has a cosine of 0.025 or more with
      $w$ and gives at least 0.4 of $w \cdot x$;
    - fraction: of the other latents of cosine 0.1 or more, the three of largest $p_j > 0$ together
      give $a$, the main latents $m$. It is 0 where $a < 0.4\, w \cdot x$ or $m \ge w \cdot x$, 1
      where $m \le 0$, else $a' / (a' + m)$ with $a' = \min(a, w \cdot x - m)$.

    Args:
        x: Activations.
        f: Their codes.
        W_dec: Decoder.
        direction: The probe's, of any length.
        latents: The main latents.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> f = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # the parent fires; a child in its place
        >>> W_dec, w = torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.tensor([2.0, 0.0])
        >>> fraction, full = absorbed(x, f, W_dec, w, torch.tensor([0]))
        >>> fraction.tolist(), full.tolist()
        ([0.0, 1.0], [False, True])
    """
    unit = direction / direction.norm()
    along = W_dec @ unit
    cosine = along / W_dec.norm(dim=1).clamp_min(_EPS)
    parts, whole = f * along, x @ unit
    main = parts[:, latents].sum(1)

    top, best = parts.max(1)
    silent = (f[:, latents] < _EPS).all(1)
    full = silent & (cosine[best] >= _FULL_COSINE) & (whole > 0) & (top >= _SHARE * whole)

    able = cosine >= _COSINE
    able[latents] = False
    others = (parts * able).clamp_min(0)
    given = others.topk(min(_MAX_ABSORBERS, others.shape[1]), dim=1).values.sum(1)
    taken = torch.minimum(given, whole - main)
    fraction = torch.where(main <= 0, 1.0, (taken / (taken + main)).clamp(0, 1))
    none = (whole <= 0) | (given < _SHARE * whole) | (main >= whole)
    return fraction.masked_fill(none, 0.0), full
