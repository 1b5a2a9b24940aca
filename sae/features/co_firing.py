"""Latents that fire on the same rows."""

import numpy as np
import torch
from torch import Tensor

from sae.features.firings import FiringStore
from sae.kernels.pairs import add_pairs
from sae.progress import progress

KEPT = 20
"""Latents listed for each latent."""
MOST_L0 = 500
"""Codes with more latents a row are not counted: their pairs grow with the square."""
_BLOCK_ENTRIES, _ROWS = 2**25, 128


def co_firing(firings: FiringStore) -> dict[str, Tensor]:
    """For each latent those that fire most often on the same rows; exact, by blocks of latents.

    Args:
        firings: All firings; of signed codes each side counts as a latent.

    Returns:
        `latent`, `count` and `jaccard` [latents 20]: the others, on how many rows both fire, and
        these as a share of the rows where either does; count 0 fills up. {} for dense codes.
    """
    counts = firings.counts
    num_latents, num_rows = firings.num_latents, max(1, int(firings.counted.sum()))
    if counts.sum() / num_rows > MOST_L0:
        return {}
    size = max(1, _BLOCK_ENTRIES // num_latents)
    blocks = [range(i, min(i + size, num_latents)) for i in range(0, num_latents, size)]
    found: list[tuple[np.ndarray, ...]] = []
    with progress("count pairs", len(blocks) * len(firings), "parts") as advance:
        for block in blocks:
            both = np.zeros((len(block), num_latents), np.int32)
            for by_latent, by_row in firings.both_ways():
                add_pairs(both, block, by_latent, by_row)
                advance(1)
            both[np.arange(len(block)), block] = 0
            found += [
                _largest(both[i : i + _ROWS], counts, block[i : i + _ROWS])
                for i in range(0, len(block), _ROWS)
            ]
    latent, count, jaccard = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return {
        "latent": torch.from_numpy(latent), "count": torch.from_numpy(count),
        "jaccard": torch.from_numpy(jaccard),
    }  # fmt: skip


def _largest(both: np.ndarray, counts: np.ndarray, block: range) -> tuple[np.ndarray, ...]:
    num_latents = both.shape[1]
    kept = min(KEPT, num_latents)
    order = both.astype(np.int64) * num_latents - np.arange(num_latents)  # of equals the first
    latent = np.argpartition(-order, kept - 1, axis=1)[:, :kept]
    falling = np.argsort(-np.take_along_axis(order, latent, 1), axis=1)
    latent = np.take_along_axis(latent, falling, 1)
    count = np.take_along_axis(both, latent, 1)
    either = counts[block.start : block.stop, None] + counts[latent] - count
    return latent, count, count / np.maximum(either, 1)
