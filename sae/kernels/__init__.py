"""Products of sparse codes: select latents, compute only their values, write only their atoms.

Architectures call `ops`; `numba_cpu`, `triton_gpu` and `stock` compute it on a `pattern`. `int8`
finds what may fire with a product of bytes. `rows` keeps the rows of a matrix at length 1.
"""

from sae.kernels.jumps import jump_gradients_
from sae.kernels.ops import (
    atoms_sum,
    backend_for,
    latent_entries,
    latent_values,
    row_sums,
    select_above_up_to,
    select_batch_topk,
    select_positive,
    select_positive_up_to,
    select_topk,
)
from sae.kernels.pattern import Pattern
from sae.kernels.rows import normalize_rows_, project_off_rows_, unit_rows

__all__ = [
    "Pattern",
    "atoms_sum",
    "backend_for",
    "jump_gradients_",
    "latent_entries",
    "latent_values",
    "normalize_rows_",
    "project_off_rows_",
    "row_sums",
    "select_above_up_to",
    "select_batch_topk",
    "select_positive",
    "select_positive_up_to",
    "select_topk",
    "unit_rows",
]
