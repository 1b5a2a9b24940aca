"""Absorption: a general latent stays silent on rows where a more specific latent fires instead.

Formulas and constants of SAEBench 0.6.0 (`evals/absorption`).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_EPS = 1e-8
_FULL_COSINE, _COSINE = 0.025, 0.1
_SHARE, _MAX_ABSORBERS = 0.4, 3


def f1(y: Bool[Tensor, " n"], predicted: Bool[Tensor, " n"]) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is right.

    Example:
        >>> f1(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        0.6666666666666666
    """
    return 2 * int((y & predicted).sum()) / max(1, int(y.sum()) + int(predicted.sum()))


def num_split(f1_by_k: Sequence[float], jump: float) -> int:
    """Number of latents a feature is split into: each further one must add more than `jump`.

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
