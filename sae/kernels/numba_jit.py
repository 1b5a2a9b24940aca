"""Compilation of the CPU's kernels, and the number of threads they run on."""

import os
from pathlib import Path

import numba
import torch
from numba import njit

from sae.provenance import cache_dir

if not os.access(Path(__file__).parent, os.W_OK):  # Numba stops where its cache has no place
    numba.config.CACHE_DIR = numba.config.CACHE_DIR or str(cache_dir() / "numba")  # pyright: ignore

jit = njit(parallel=True, fastmath=True, nogil=True, cache=True)
jit_exactly = njit(parallel=True, nogil=True, cache=True)
"""For loops without sums over a vector, which `fastmath` does not make faster. With it, on a CPU
with AVX-512, a process that compiled the gradients of jumps rounded them otherwise than one that
found them compiled: a run that was killed in between did not go on bit by bit."""


def set_threads() -> int:
    """Use as many threads as PyTorch does, up to the number that Numba started with."""
    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)  # pyright: ignore
    numba.set_num_threads(threads)
    if torch.get_num_threads() != wanted:  # the start of Numba's threads resets OpenMP's number
        torch.set_num_threads(wanted)
    return threads
