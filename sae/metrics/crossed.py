"""Means of values that depend on two things, which cross or of which one lies in the other."""

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


def nested_draws(
    groups: int, members: int, num_resamples: int, seed: int
) -> Float[np.ndarray, "draws groups members"]:
    """Weights of a bootstrap over groups, and over the members inside each drawn group.

    The first draw holds everything once; the weights of every draw sum to groups times members.

    Args:
        groups: Number of groups.
        members: Number of members of each group.
        num_resamples: Draws behind the first.
        seed: Decides them.

    Example:
        >>> nested_draws(3, 2, 4, seed=0).sum((1, 2)).tolist()
        [6.0, 6.0, 6.0, 6.0, 6.0]
    """
    random = np.random.default_rng(seed)
    counts = random.multinomial(groups, np.full(groups, 1 / groups), size=num_resamples)
    drawn = random.multinomial(counts * members, np.full(members, 1 / members))
    return np.concatenate([np.ones((1, groups, members)), drawn])
