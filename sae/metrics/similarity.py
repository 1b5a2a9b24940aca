"""Likeness of two dictionaries: by their atoms, and by when their latents fire.

Everything goes by blocks of latents, so that no step holds more than one block against the other
dictionary; only the matching needs the whole matrix.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import DegenerateInputError

BLOCK = 2048


class Nearest(NamedTuple):
    """For every latent of one dictionary the one of another that is most like it, and how much."""

    value: Float[Tensor, " a"]
    index: Int[Tensor, " a"]


class Matching(NamedTuple):
    """Pairs of latents, none used twice: `first[i]` of one dictionary, `second[i]` of the other."""

    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    cosine: Float[Tensor, " pairs"]


def max_cosine(
    atoms: Float[Tensor, "a d"], others: Float[Tensor, "b d"], absolute: bool = False
) -> Nearest:
    """For every atom the largest cosine to any atom of another dictionary, and which one that is.

    The mean of the values is MMCS, the mean max cosine similarity (arXiv 2309.08600, appendix); it
    is not symmetric.

    Args:
        atoms: A row for each atom, of any length but 0.
        others: Atoms of the other dictionary.
        absolute: Take |cosine|: where atoms have no sign of their own, as those of PCA.

    Example:
        >>> a = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> max_cosine(a, torch.tensor([[1.0, 1.0], [0.0, -3.0], [5.0, 0.0]]))
        Nearest(value=tensor([1.0000, 0.7071]), index=tensor([2, 0]))
    """
    unit, found = _unit(others), []
    for block in _unit(atoms).split(BLOCK):
        cosines = block @ unit.T
        found.append((cosines.abs() if absolute else cosines).max(dim=1))
    return Nearest(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def match(
    atoms: Float[Tensor, "a d"], others: Float[Tensor, "b d"], absolute: bool = False
) -> Matching:
    """The one-to-one pairing with the largest sum of cosines (Hungarian matching).

    Every atom of the smaller dictionary gets a partner. Needs a matrix of a * b float64 and, with
    thousands of atoms, a minute or more.

    Args:
        atoms: A row for each atom.
        others: Atoms of the other dictionary.
        absolute: Take |cosine|.
    """
    from scipy.optimize import linear_sum_assignment

    unit = _unit(others)
    cosines = torch.cat([block @ unit.T for block in _unit(atoms).split(BLOCK)])
    if absolute:
        cosines.abs_()
    first, second = linear_sum_assignment(cosines.numpy(), maximize=True)
    first, second = torch.as_tensor(first), torch.as_tensor(second)
    return Matching(first, second, cosines[first, second])


def share_above(values: Float[Tensor, " n"], threshold: float) -> float:
    """Share of the values above a threshold."""
    return float((values > threshold).double().mean())


Encode = Callable[[Tensor], Tensor]
Batches = Callable[[], Iterable[Tensor]]


def max_correlation(
    encode: Encode, other: Encode, batches: Batches, absolute: bool = False
) -> Nearest:
    """For every latent the largest Pearson correlation with any latent of another dictionary.

    Both encode the same vectors, which are read once for the moments and once more for each block
    of latents. A latent that never varies correlates with nothing: its value is NaN, and it is
    nobody's partner.

    Args:
        encode: Feature activations [batch a] of a batch.
        other: Encoder of the other dictionary, which gives [batch b].
        batches: Starts to read the vectors.
        absolute: Take |correlation|.

    Raises:
        DegenerateInputError: If no latent of the other dictionary varies.
    """
    count = sum(len(x) for x in batches())
    mean_a, std_a = _moments(encode, batches)
    mean_b, std_b = _moments(other, batches)
    if not bool((std_b > 0).any()):
        raise DegenerateInputError("No latent varies on these vectors, so nothing correlates.")
    found = []
    for block in torch.arange(len(mean_a)).split(BLOCK):
        total = torch.zeros(len(block), len(mean_b), dtype=torch.float64)
        for x in batches():
            z_a = _standard(encode(x)[:, block], mean_a[block], std_a[block])
            total += (z_a.T @ _standard(other(x), mean_b, std_b)).double().cpu()
        correlations = total / count
        correlations = correlations.abs() if absolute else correlations
        correlations[:, std_b == 0] = -torch.inf
        best = correlations.max(dim=1)
        value = best.values.masked_fill(std_a[block] == 0, torch.nan)
        found.append((value.float(), best.indices))
    return Nearest(torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found]))


def _unit(atoms: Tensor) -> Tensor:
    return torch.nn.functional.normalize(atoms.detach().float().cpu(), dim=1)


def _standard(f: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Less the mean, over the deviation; 0 where a latent never varies. Float32."""
    inverse = torch.where(std > 0, 1 / std, 0).to(f.device)
    return ((f.double() - mean.to(f.device)) * inverse).float()


def _moments(encode: Encode, batches: Batches) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (over n) of every latent, float64."""
    count, first, second = 0, torch.zeros(()), torch.zeros(())
    for x in batches():
        f = encode(x).double()
        count += len(f)
        first, second = first + f.sum(0).cpu(), second + f.square().sum(0).cpu()
    mean = first / count
    variance = second / count - mean.square()
    # float64 sums of float32 data are exact to about 1e-13: what is smaller is rounding
    varies = variance > 1e-12 * (second / count)
    return mean, torch.where(varies, variance.clamp_min(0), 0).sqrt()
