"""Counts of rows on which two latents fire, from sparse codes."""

from typing import no_type_check

import numpy as np
from jaxtyping import Int
from numba import prange

from sae.kernels.numba_jit import jit, set_threads


def add_pairs(
    both: Int[np.ndarray, "block latents"],
    latents: range,
    by_latent: tuple[np.ndarray, np.ndarray],
    by_row: tuple[np.ndarray, np.ndarray],
) -> None:
    """Add the pairs of some rows, in place; of a latent with itself, its firings.

    Args:
        both: Counts.
        latents: The latents that its rows stand for.
        by_latent: Offsets at which each latent's rows begin, and the rows [firings], int32.
        by_row: Offsets at which each row's latents begin, and the latents [firings], int32.
    """
    set_threads()
    _add_pairs(both, latents.start, *by_latent, *by_row)


@no_type_check
@jit
def _add_pairs(both, first, start, rows, row_start, latent):
    for i in prange(len(both)):
        counts = both[i]  # stays in the fastest cache
        for k in range(start[first + i], start[first + i + 1]):
            row = rows[k]
            for j in range(row_start[row], row_start[row + 1]):
                counts[latent[j]] += 1
