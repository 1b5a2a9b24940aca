"""Firings of dense dictionaries, computed block by block of latents and not stored.

Where the latents do not compete (ReLU, or the code as it is), a latent's activations follow from
its own encoder column alone. Bases fire on half of the rows: on disk, their firings would take as
much room as dense codes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool

from sae.activations.counted_rows import all_rows
from sae.activations.rows import Rows
from sae.dictionaries.sae import SAE
from sae.features.firings import Firings

BY_COLUMN = ("relu", "identity")
"""Activations that need no other latent."""
_BLOCK_VALUES = 2**25


@torch.no_grad()
def firings_by_column(
    sae: SAE, rows: Rows, counted: Bool[np.ndarray, " rows"], latents: Sequence[int]
) -> Iterator[tuple[int, Firings]]:
    """The firings of some latents, each with its index.

    Args:
        sae: Its activation is one of `BY_COLUMN`.
        rows: A split.
        counted: Mask of its first rows: those that count; only these are read.
        latents: Indices; d_sae + j is the negative side of latent j.
    """
    assert sae.config.activation in BY_COLUMN
    size = max(1, _BLOCK_VALUES // len(counted))
    for first in range(0, len(latents), size):
        block = torch.tensor(latents[first : first + size])
        column = (block % sae.d_sae).to(sae.device)
        sign = torch.where(block < sae.d_sae, 1.0, -1.0).to(sae.device)
        W, b = sign * sae.W_enc[:, column].float(), sign * sae.b_enc[column].float()
        codes = torch.empty(len(block), len(counted))
        everything = all_rows(rows)
        for chunk in range(everything.num_chunks):
            start, stop = everything.chunk_bounds(chunk)
            stop = min(stop, len(counted))
            if start >= stop:
                break
            x = everything.read(chunk)[: stop - start].to(sae.device).float()
            codes[:, start:stop] = (x @ W + b).relu().T.cpu()
        values = codes.numpy()
        values[:, ~counted] = 0
        for latent, of in zip(block.tolist(), values, strict=True):
            row = np.flatnonzero(of)
            yield latent, Firings(row, of[row])
