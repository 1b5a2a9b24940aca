"""Products of sparse codes: select latents, compute only their values, write only their atoms.

`ops` is what architectures call; `numba_cpu`, `triton_gpu` and `stock` compute it. `rows` keeps the
rows of a matrix at length 1.
"""

from sae.kernels.ops import (
    Pattern,
    atoms_sum,
    backend_for,
    latent_values,
    select_batch_topk,
    select_positive,
    select_positive_up_to,
    select_topk,
    tied_code,
)
from sae.kernels.rows import normalize_rows_, project_off_rows_, unit_rows

__all__ = [
    "Pattern",
    "atoms_sum",
    "backend_for",
    "latent_values",
    "normalize_rows_",
    "project_off_rows_",
    "select_batch_topk",
    "select_positive",
    "select_positive_up_to",
    "select_topk",
    "tied_code",
    "unit_rows",
]
