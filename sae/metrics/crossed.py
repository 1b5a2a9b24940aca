"""Means of values that depend on two things at once, such as features and prompts."""

import numpy as np
from jaxtyping import Float

from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import draws


def crossed_means(
    values: Float[np.ndarray, "first second"], bootstrap: Bootstrap
) -> Float[np.ndarray, " draws"]:
    """Bootstrap draws of the mean, rows and columns drawn with replacement, each by themselves.

    Two tables of one shape get the same draws, so a difference of means is paired. The first draw
    holds everything once.

    Args:
        values: A value for each pair.
        bootstrap: Settings of the draws of rows and columns.

    Example:
        >>> crossed_means(np.array([[0.0, 1.0]]), Bootstrap(num_resamples=3)).shape
        (4,)
    """
    rows, columns = (
        draws(size, bootstrap.num_resamples, bootstrap.seed + axis) / size
        for axis, size in enumerate(values.shape)
    )
    return np.einsum("di,ij,dj->d", rows, values, columns)
