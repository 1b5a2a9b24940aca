"""Affine maps that take a concept out of vectors, in closed form and float64.

Sources: LEACE, Belrose et al. 2023 (arXiv 2306.03819); SPLINCE, Holstege et al. 2025
(arXiv 2506.10703).
"""

import logging
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError

log = logging.getLogger(__name__)
ROWS_PER_DIMENSION = 10
"""Rows for each dimension that a covariance should be estimated from."""
_RANK_TOLERANCE = 1e-10
_BATCH_ROWS = 8192  # in float64 at once


class Eraser(NamedTuple):
    """The map x - removed (x - centre).

    Args:
        removed: The part that goes.
        centre: The point that stays where it is.
    """

    removed: Float[Tensor, "d d"]
    centre: Float[Tensor, " d"]

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The vectors without the concept, in their own dtype."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        removed, centre = (part.to(x.device, wide) for part in self)
        return (x.to(wide) - (x.to(wide) - centre) @ removed.T).to(x)


class Moments(NamedTuple):
    """Mean and covariances of rows with labels, in float64.

    Args:
        mean: Mean row.
        xx: Covariance of the rows.
        xz: Covariance with each class of the concept; of two classes with one of them.
        differences: Class means less the mean of all rows; of two classes their difference.
    """

    mean: Float[Tensor, " d"]
    xx: Float[Tensor, "d d"]
    xz: Float[Tensor, "d classes"]
    differences: Float[Tensor, "d classes"]


def moments(x: Float[Tensor, "n d"], z: Int[Tensor, " n"]) -> Moments:
    """Moments of rows and the classes of a concept.

    Raises:
        ConfigError: If there are fewer rows than dimensions, or one class only.
    """
    n, d = x.shape
    if n <= d:
        raise ConfigError(
            f"{n:,} rows of {d} dimensions are too few to fit an eraser on: their covariance is "
            f"singular, and every concept would look erased. Give more than "
            f"{ROWS_PER_DIMENSION * d:,} rows."
        )
    if n <= ROWS_PER_DIMENSION * d:
        log.warning(
            "Erasers are fitted on %s rows of %s dimensions. More than %s rows are advisable.",
            f"{n:,}", d, f"{ROWS_PER_DIMENSION * d:,}",
        )  # fmt: skip
    classes = z.unique()
    if len(classes) < 2:
        raise ConfigError(
            f"All {n:,} rows are of one class; an eraser needs rows of two or more. Give rows of "
            "another class."
        )
    member = (z[:, None] == (classes[1:] if len(classes) == 2 else classes)).double()
    mean, second, by_class = (torch.zeros(shape, dtype=torch.float64, device=x.device)
                              for shape in (d, (d, d), (member.shape[1], d)))  # fmt: skip
    for rows, of in zip(x.split(_BATCH_ROWS), member.split(_BATCH_ROWS), strict=True):
        rows = rows.double()
        mean += rows.sum(0) / n
        by_class += of.T @ rows
    for rows in x.split(_BATCH_ROWS):
        second += (rows.double() - mean).T @ (rows.double() - mean) / n
    count = member.sum(0)[:, None]
    base = (n * mean - by_class[0]) / (n - count[0]) if len(classes) == 2 else mean
    return Moments(mean, second, covariance(x, member), (by_class / count - base).T)


def covariance(x: Float[Tensor, "n d"], y: Float[Tensor, "n k"]) -> Float[Tensor, "d k"]:
    """Covariance of two sets of columns, in float64; sums are divided by n."""
    centred = y.double() - y.double().mean(0)  # so that the rows' mean drops out
    parts = zip(x.split(_BATCH_ROWS), centred.split(_BATCH_ROWS), strict=True)
    return torch.stack([rows.double().T @ own for rows, own in parts]).sum(0) / len(x)


def leace(found: Moments) -> Eraser:
    """The least change after which all classes have the same mean: W⁺ U Uᵀ W.

    W is the whitening matrix, U a basis of the span of W Σxz. No shrinkage.
    """
    whiten, unwhiten = _whitening(found.xx)
    U = _span(whiten @ found.xz)
    return Eraser(unwhiten @ U @ U.T @ whiten, found.mean)


def splince(found: Moments, xy: Float[Tensor, "d k"]) -> Eraser:
    """Like LEACE, but the covariance with a second label stays as it is.

    With a = W Σxz and b = W Σxy, U a basis of the complement of span(a) and V = [b, a basis of the
    complement of span(a, b)]: P = W⁺ V (Uᵀ V)⁻¹ Uᵀ W.

    Args:
        found: Moments with the concept that goes.
        xy: Covariance with the label that stays.

    Raises:
        ConfigError: If some of b lies in the span of a: it cannot stay when the concept goes.
    """
    whiten, unwhiten = _whitening(found.xx)
    a, b = _span(whiten @ found.xz), _span(whiten @ xy)
    if not b.shape[1]:
        raise ConfigError(
            "SPLINCE cannot keep this label: it is the same for all rows. Use LEACE, or rows in "
            "which it differs."
        )
    sines = torch.linalg.svdvals(b - a @ (a.T @ b))  # of the angles between the two spans
    if float(sines.min()) <= 1e-6:
        raise ConfigError(
            "SPLINCE cannot keep this label: every direction that predicts it predicts the concept "
            "as well. Use LEACE, or rows in which the two labels differ."
        )
    U = _complement(a)
    V = torch.cat([b, _complement(torch.cat([a, b], 1))], 1)
    kept = V @ torch.linalg.solve(U.T @ V, U.T)
    identity = torch.eye(len(kept), dtype=kept.dtype)
    return Eraser(unwhiten @ (identity - kept) @ whiten, found.mean)


def mean_projection(found: Moments) -> Eraser:
    """Rows without their part along the differences of class means."""
    U = _span(found.differences)
    return Eraser(U @ U.T, torch.zeros_like(found.mean))


def mean_affine(found: Moments) -> Eraser:
    """As `mean_projection`, and the mean row stays where it is: class means become equal to it."""
    U = _span(found.differences)
    return Eraser(U @ U.T, found.mean)


def _whitening(xx: Float[Tensor, "d d"]) -> tuple[Tensor, Tensor]:
    """Σ^(-1/2) and Σ^(1/2), both 0 in directions without variance."""
    sizes, axes = torch.linalg.eigh(xx)
    there = sizes > sizes[-1] * len(sizes) * torch.finfo(sizes.dtype).eps
    root = torch.where(there, sizes, 0).sqrt()
    inverse = torch.where(there, 1 / root, 0)
    return (axes * inverse) @ axes.T, (axes * root) @ axes.T


def _span(columns: Float[Tensor, "d k"]) -> Float[Tensor, "d rank"]:
    """An orthonormal basis of the span of columns."""
    U, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    return U[:, sizes > _RANK_TOLERANCE * sizes.max()]


def _complement(columns: Float[Tensor, "d k"]) -> Float[Tensor, "d rest"]:
    """An orthonormal basis of what is orthogonal to independent columns."""
    U, sizes, _ = torch.linalg.svd(columns, full_matrices=True)
    return U[:, int((sizes > _RANK_TOLERANCE * sizes.max()).sum()) :]
