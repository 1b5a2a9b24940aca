"""Counts of kinds (tokens, labels) among the firings of many latents, summed up while in cache.

A thread has one table of counts, which it clears as it reads it: latents fire on few kinds.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import prange

from sae.kernels.numba_jit import jit, set_threads


class Sums(NamedTuple):
    """Sums over the kinds among the firings of each latent: of all, then without each group.

    Args:
        n_log_n: Sum of n log2 n of the counts n.
        largest: Largest count.
        bits: `sae.functional.firing_bits` over the kinds.
    """

    n_log_n: Float[np.ndarray, "latents columns"]
    largest: Int[np.ndarray, "latents columns"]
    bits: Float[np.ndarray, "latents columns"]


def sums_without(
    kind: Int[np.ndarray, " firings"],
    group: Int[np.ndarray, " firings"],
    start: Int[np.ndarray, " starts"],
    total: Int[np.ndarray, "kinds columns"],
) -> Sums:
    """Sums over all firings of each latent, and over those outside of each group.

    Args:
        kind: Kind of each firing, the latents one after the other.
        group: Group of each firing.
        start: Offsets at which each latent's firings begin, and the end of the last one's.
        total: Rows of each kind, whether a latent fires or not: all, then by group. With one
            column there are no groups.
    """
    shape = (len(start) - 1, total.shape[1])
    found = Sums(np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape))
    table = n_log_n(np.arange(int(total[:, 0].max(initial=0)) + 1))
    _sums_without(kind, group, start, total, table, *found, set_threads())
    return found


def sums_within(
    kind: Int[np.ndarray, " firings"],
    group: Int[np.ndarray, " firings"],
    start: Int[np.ndarray, " starts"],
    num_kinds: int,
    num_groups: int,
) -> tuple[Float[np.ndarray, "latents groups"], Int[np.ndarray, "latents groups"]]:
    """`n_log_n` and `largest` of the firings inside of each group.

    Args:
        kind: See `sums_without`.
        group: See `sums_without`.
        start: See `sums_without`.
        num_kinds: Kinds.
        num_groups: Groups.
    """
    shape = (len(start) - 1, num_groups)
    sums, largest = np.zeros(shape), np.zeros(shape, np.int64)
    table = n_log_n(np.arange(int(np.diff(start).max(initial=0)) + 1))
    _sums_within(kind, group, start, num_kinds, table, sums, largest, set_threads())
    return sums, largest


def n_log_n(counts: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Compute n log2 n for each count n; 0 at 0."""
    return counts * np.log2(np.maximum(counts, 1))


@no_type_check
@jit
def _sums_without(kind, group, start, total, table, n_log_n, largest, bits, threads):
    columns, latents = total.shape[1], len(start) - 1
    for thread in prange(threads):
        counts = np.zeros((total.shape[0], columns), np.int32)
        there = np.empty(total.shape[0], np.int32)
        for i in range(thread, latents, threads):
            found = 0
            for k in range(start[i], start[i + 1]):
                one = kind[k]
                if counts[one, 0] == 0:
                    there[found] = one
                    found += 1
                counts[one, 0] += 1
                if columns > 1:
                    counts[one, 1 + group[k]] += 1
            for j in range(found):
                one = there[j]
                for g in range(columns):
                    fired, rows = counts[one, 0], total[one, 0]
                    if g > 0:
                        fired -= counts[one, g]
                        rows -= total[one, g]
                    n_log_n[i, g] += table[fired]
                    bits[i, g] += table[rows] - table[fired] - table[rows - fired]
                    largest[i, g] = max(largest[i, g], fired)
                counts[one] = 0


@no_type_check
@jit
def _sums_within(kind, group, start, num_kinds, table, n_log_n, largest, threads):
    num_groups, latents = n_log_n.shape[1], len(start) - 1
    for thread in prange(threads):
        counts = np.zeros((num_kinds, num_groups), np.int32)
        for i in range(thread, latents, threads):
            for k in range(start[i], start[i + 1]):
                counts[kind[k], group[k]] += 1
            for k in range(start[i], start[i + 1]):
                one, g = kind[k], group[k]
                n_log_n[i, g] += table[counts[one, g]]
                largest[i, g] = max(largest[i, g], counts[one, g])
                counts[one, g] = 0
