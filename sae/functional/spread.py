"""Spread of the variance over rows: medians of streams, the first principal direction."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BINS_PER_OCTAVE = 64
_LOWEST, _HIGHEST = -24, 8  # octaves
RATIO_BINS = (_HIGHEST - _LOWEST) * _BINS_PER_OCTAVE
"""Bins of `ratio_bins`, 1.1 % wide, from 2^-24 to 2^8; what is outside is in the first or last."""


def error_ratios(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"], mean: Float[Tensor, " d_in"]
) -> Float[Tensor, " batch"]:
    r"""$\|x_i-\hat x_i\|^2 / \|x_i-\bar x\|^2$ of each row, float64.

    Infinite for a row at the mean that is not reproduced.

    The median over rows is `fvu_median`: unlike FVU, few long rows cannot decide it.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> error_ratios(x, x + 1, torch.tensor([2.0, 0.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    x = x.double()
    error, square = (x - x_hat.double()).square().sum(-1), (x - mean.to(x)).square().sum(-1)
    return torch.where(square > 0, error / square, torch.where(error > 0, torch.inf, 0.0))


def ratio_bins(ratios: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The logarithmic bin of each ratio; 1 is the middle of its bin."""
    octave = ratios.clamp(2.0**_LOWEST, 2.0**_HIGHEST).log2() - _LOWEST
    return (octave * _BINS_PER_OCTAVE + 0.5).long().clamp(max=RATIO_BINS - 1)


def median_of_bins(counts: Float[Tensor, "*batch bins"]) -> Float[Tensor, "*batch"]:
    """Median of ratios counted by `ratio_bins`, within 0.6 %; NaN where there are none.

    Example:
        >>> counts = torch.bincount(ratio_bins(torch.tensor([0.1, 1.0, 7.0])), minlength=RATIO_BINS)
        >>> median_of_bins(counts.double()).item()
        1.0
    """
    cumulative = counts.cumsum(-1)
    total = cumulative[..., -1:]
    index = torch.searchsorted(cumulative.contiguous(), total / 2)[..., 0]
    median = torch.exp2(index.double() / _BINS_PER_OCTAVE + _LOWEST)
    return torch.where(total[..., 0] > 0, median, torch.nan)


def first_direction_share(x: Float[Tensor, "rows d_in"], iterations: int = 50) -> float:
    """Share of the variance of rows that lies along their first principal direction.

    By power iteration, which ends when the share grows by less than 1e-5 of itself. NaN where the
    rows do not vary.

    Example:
        >>> x = torch.tensor([[3.0, 1.0], [-3.0, 1.0], [3.0, -1.0], [-3.0, -1.0]])
        >>> round(first_direction_share(x), 4)
        0.9
    """
    x = (x.double() - x.mean(0, dtype=torch.float64)).float()
    total = x.double().square().sum()
    if not total > 0:
        return float("nan")
    # from the longest row: where few rows hold the variance, their direction is found at once
    direction, share = x[x.square().sum(1).argmax()], 0.0
    for _ in range(iterations):
        along = x @ (direction / direction.norm())
        before, share = share, float(along.double().square().sum() / total)
        if share - before < 1e-5 * share:
            break
        direction = x.T @ along
    return share
