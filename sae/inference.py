r"""Exact sparse inference: the best non-negative code of a vector on a given dictionary.

An encoder guesses the code in one step; this solves for it. Source of the algorithm: Beck &
Teboulle 2009 (FISTA), with the restarts of O'Donoghue & Candes 2015.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CHECK_EVERY_STEPS = 10


@torch.no_grad()
def fista(
    x: Float[Tensor, "batch d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    l1: float,
    *,
    tolerance: float = 1e-5,
    max_steps: int = 2000,
    allowed: Bool[Tensor, "batch d_sae"] | None = None,
    start: Float[Tensor, "batch d_sae"] | None = None,
) -> Float[Tensor, "batch d_sae"]:
    r"""Codes that minimise $\frac12\|x - f W_{dec}\|^2 + l1 \sum_j f_j$ over $f \ge 0$.

    Stops when the duality gap of every vector is at most `tolerance` times $\frac12\|x\|^2$, so
    the loss is known to be that close to its minimum; with `l1=0`, which leaves no gap to
    compute, when no code vector moves by more than `tolerance` of its length in a step. Codes
    are exactly zero where they vanish.

    Args:
        x: Vectors, less the decoder's bias.
        W_dec: Dictionary, an atom a row.
        l1: Price of a unit of code, at least 0, in units of x. scikit-learn's
            `Lasso(alpha=l1 / d_in, positive=True)` solves the same problem.
        tolerance: Relative duality gap; below 1e-6 give float64 tensors.
        max_steps: Steps at most; reached with nearly parallel atoms.
        allowed: Codes that may differ from 0; None: all.
        start: Codes to begin with.

    Example:
        >>> fista(torch.tensor([[3.0, 0.5]]), torch.eye(2), l1=1.0)
        tensor([[2., 0.]])
    """
    steepest = torch.linalg.eigvalsh(W_dec.double().T @ W_dec.double())[-1]
    step = 1 / steepest.clamp_min(1e-12).item()
    f = x.new_zeros(len(x), len(W_dec)) if start is None else start
    ahead, momentum = f, x.new_ones(len(x), 1)
    for number in range(1, max_steps + 1):
        new = (ahead + step * ((x - ahead @ W_dec) @ W_dec.T - l1)).relu()
        if allowed is not None:
            new = new * allowed
        # a step against the momentum: that vector starts anew
        restart = ((ahead - new) * (new - f)).sum(1, keepdim=True) > 0
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        following = following.masked_fill(restart, 1.0)
        weight = ((momentum - 1) / following).masked_fill(restart, 0.0)
        moved = new - f
        ahead, f, momentum = new + weight * moved, new, following
        if number % _CHECK_EVERY_STEPS == 0:
            if l1 > 0:
                gap = duality_gap(x, W_dec, f, l1, allowed)
                done = gap <= tolerance * x.square().sum(1) / 2
            else:
                done = moved.norm(dim=1) <= tolerance * f.norm(dim=1)
            if bool(done.all()):
                break
    return f


def duality_gap(
    x: Float[Tensor, "batch d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    f: Float[Tensor, "batch d_sae"],
    l1: float,
    allowed: Bool[Tensor, "batch d_sae"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Upper bound on the distance of `fista`'s loss from its minimum; 0 at the solution.

    The residual r, shrunk until no atom gains more than its price ($W_{dec}\,u \le l1$), is a dual
    point u, whose value $\frac12\|x\|^2 - \frac12\|x-u\|^2$ lies below every loss.
    """
    residual = x - f @ W_dec
    gain = residual @ W_dec.T
    if allowed is not None:
        gain = gain.masked_fill(~allowed, 0.0)
    largest = gain.amax(1).clamp_min(0)
    shrink = torch.where(largest > l1, l1 / largest.clamp_min(1e-30), 1.0)[:, None]
    loss = residual.square().sum(1) / 2 + l1 * f.sum(1)
    u = shrink * residual
    return loss - (x.square().sum(1) - (x - u).square().sum(1)) / 2


@torch.no_grad()
def codes_at_l0(
    x: Float[Tensor, "batch d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    l0: float,
    *,
    tolerance: float = 1e-5,
    max_steps: int = 2000,
    attempts: int = 12,
) -> tuple[Float[Tensor, "batch d_sae"], float]:
    """Codes of `fista` whose mean number of non-zero entries is `l0`, and their l1.

    The coefficient is searched by halving an interval of its logarithm, until the mean is within
    1 % of `l0` or after `attempts` of them; the nearest attempt is returned. Where fewer codes
    explain the vectors already, no coefficient makes `l0` of them fire; the smallest then stands.

    Args:
        x: Vectors, less the decoder's bias.
        W_dec: Dictionary, an atom a row.
        l0: Wanted mean number of non-zero entries per code.
        tolerance: Argument of `fista`.
        max_steps: Argument of `fista`.
        attempts: Coefficients tried at most.
    """
    high = max((x @ W_dec.T).max().item(), 1e-12)  # from here on all codes are zero
    low = 1e-4 * high
    best, best_l1, nearest = x.new_zeros(len(x), len(W_dec)), high, l0
    for _ in range(attempts):
        l1 = (low * high) ** 0.5
        f = fista(x, W_dec, l1, tolerance=tolerance, max_steps=max_steps, start=best)
        found = (f != 0).sum(1).double().mean().item()
        if abs(found - l0) <= nearest:
            best, best_l1, nearest = f, l1, abs(found - l0)
        if nearest <= 0.01 * l0:
            break
        low, high = (l1, high) if found > l0 else (low, l1)
    return best, best_l1
