"""The selections on a CPU, compiled by Numba.

Positive floats are ordered as the integers with the same bits, and negative ones are negative
integers, so selection compares integers and one code serves bfloat16, float16 and float32.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Int
from numba import njit, prange
from torch import Tensor

from sae.kernels.numba_jit import jit, set_threads

Selected = tuple[Int[Tensor, " batch_plus_1"], Int[Tensor, " pairs"]]

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_FEWEST_GROUPS = 256
_SAMPLED_ROWS, _MORE_THAN_WANTED = 128, 1.25


def select_positive(pre: Float[Tensor, "batch d_sae"], most: int) -> Selected | None:
    """See `sae.kernels.ops`."""
    bits = _bits(pre)
    return _select_above(bits, np.zeros(bits.shape[1], dtype=bits.dtype), most)


def select_above(
    pre: Float[Tensor, "batch d_sae"], thresholds: Float[Tensor, " d_sae"], most: int
) -> Selected | None:
    """See `sae.kernels.ops`; not in bfloat16, which NumPy does not know."""
    return _select_above(pre.numpy(), thresholds.numpy(), most)


def select_above_bf16(
    pre: BFloat16[Tensor, "batch d_sae"], thresholds: Float[Tensor, " d_sae"], most: int
) -> Selected | None:
    """`select_above` of bfloat16, exactly.

    A number is above a threshold if it is above the highest bfloat16 that is not.
    """
    lower = thresholds.bfloat16()
    bounds = _ordered(lower) - (lower > thresholds).numpy()
    return _select_above(_ordered(pre), bounds.astype(np.int16), most)


def _ordered(values: BFloat16[Tensor, "..."]) -> np.ndarray:
    """Integers in the order of the numbers: of negative ones the bits of the magnitude turn."""
    bits = _bits(values)
    set_threads()
    ordered = np.empty(bits.size, np.int16)
    _order(bits.reshape(-1), ordered)
    return ordered.reshape(bits.shape)


def select_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`."""
    latents = torch.empty(len(pre), k, dtype=torch.int32)
    lengths = torch.empty(len(pre), dtype=torch.int64)
    _row_topk(_bits(pre), k, set_threads(), latents.numpy(), lengths.numpy())
    full = torch.arange(k) < lengths[:, None]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return offsets, latents.flatten() if bool(full.all()) else latents[full]


def select_batch_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`.

    A sample of the rows tells a bound that a few more values reach than are wanted; the exact
    search looks at these alone.
    """
    bits, wanted = _bits(pre), k * len(pre)
    sample = np.ascontiguousarray(bits[:: max(1, len(bits) // _SAMPLED_ROWS)])
    likely = _kth_and_ties(sample, int(_MORE_THAN_WANTED * k * len(sample)))[0]
    bound = np.full(bits.shape[1], max(likely - 1, 0), dtype=bits.dtype)
    offsets = _count(bits, bound)
    if offsets[-1] < wanted:  # the sample was not like the batch
        bound[:] = 0
        offsets = _count(bits, bound)
    latents, values = _fill(bits, bound, offsets)
    threshold, ties = _kth_and_ties(values[None], wanted)
    kept = values > threshold
    kept[np.flatnonzero(values == threshold)[:ties]] = True
    ends = np.concatenate([[0], kept.cumsum()])
    return torch.from_numpy(ends[offsets]), torch.from_numpy(latents[kept])


def _bits(pre: Tensor) -> np.ndarray:
    return pre.view(_BITS[pre.element_size()]).numpy()


def _select_above(pre: np.ndarray, thresholds: np.ndarray, most: int) -> Selected | None:
    offsets = _count(pre, thresholds)
    if offsets[-1] > most:
        return None
    return torch.from_numpy(offsets), torch.from_numpy(_fill(pre, thresholds, offsets)[0])


def _count(pre: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Offsets of rows that select all above the threshold of their column."""
    set_threads()
    offsets = np.zeros(len(pre) + 1, dtype=np.int64)
    _count_above(pre, thresholds, offsets)
    return np.cumsum(offsets, out=offsets)


def _fill(
    pre: np.ndarray, thresholds: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Latents and values of what is above the threshold of its column."""
    latents = np.empty(offsets[-1], dtype=np.int32)
    values = np.empty(offsets[-1], dtype=pre.dtype)
    _fill_above(pre, thresholds, offsets, latents, values)
    return latents, values


@jit
@no_type_check
def _order(bits, ordered):
    for i in prange(bits.shape[0]):
        ordered[i] = bits[i] ^ ((bits[i] >> np.int16(15)) & np.int16(0x7FFF))


@jit
@no_type_check  # which also keeps run-time type checkers out of compiled code
def _count_above(pre, thresholds, offsets):
    for r in prange(pre.shape[0]):
        row, n = pre[r], 0
        for c in range(row.shape[0]):
            n += row[c] > thresholds[c]
        offsets[r + 1] = n


@jit
@no_type_check
def _fill_above(pre, thresholds, offsets, latents, values):
    for r in prange(pre.shape[0]):
        row, n = pre[r], offsets[r]
        for c in range(row.shape[0]):
            if row[c] > thresholds[c]:
                latents[n], values[n] = c, row[c]
                n += 1


@njit(nogil=True, cache=True)
@no_type_check
def _kth_largest(values, k, low, spare):
    """By bisection of the bits: each pass counts what is above. 0 if fewer than k are positive.

    `low` is 0, or at least k reach it. The search may end before, where k to k + `spare` reach what
    it found.
    """
    high = low
    for i in range(values.shape[0]):
        high = max(high, np.int64(values[i]))
    # fewer than k are above `high`; `low` is 0, or at least k are above low - 1
    while low < high:
        middle = low + (high - low) // 2
        threshold, above = values.dtype.type(middle), np.int32(0)
        for i in range(values.shape[0]):
            above += np.int32(values[i] > threshold)
        if above < k:
            high = middle
        else:
            low = middle + 1
            if above <= k + spare:
                break
    return low


@jit
@no_type_check
def _row_topk(bits, k, parts, latents, lengths):
    """Latents [rows k] of each row, rising, and how many of them there are.

    At least k values reach the k-th largest of the maxima of some groups of the row, which are
    every 256th column or so: few others do. They lie in the few groups whose maxima reach it, so
    that most of the row is read once, eight values at a time.
    """
    width = bits.shape[1]
    groups = min(width, max(_FEWEST_GROUPS, 4 * k))
    for part in prange(parts):
        maxima = np.empty(groups, dtype=bits.dtype)
        hits = np.empty(groups, dtype=np.int32)
        places = np.empty(width, dtype=np.int32)
        values = np.empty(width, dtype=bits.dtype)
        for r in range(part * bits.shape[0] // parts, (part + 1) * bits.shape[0] // parts):
            row = bits[r]
            maxima[:] = row[:groups]
            for start in range(groups, width, groups):
                piece = row[start : start + groups]
                for c in range(piece.shape[0]):
                    maxima[c] = max(maxima[c], piece[c])
            low = _kth_largest(maxima, k, 0, k // 8)
            bound, n_hits, found = bits.dtype.type(max(low, 1)), 0, 0
            for g in range(groups):  # written always, counted if it is one: no branch to guess
                hits[n_hits] = g
                n_hits += maxima[g] >= bound
            for start in range(0, width, groups):
                piece = row[start : start + groups]
                for i in range(n_hits):
                    if hits[i] < piece.shape[0]:
                        places[found] = start + hits[i]
                        values[found] = piece[hits[i]]
                        found += values[found] >= bound
            threshold = bits.dtype.type(_kth_largest(values[:found], k, low, 0))
            equals, n = k, 0
            for i in range(found):
                equals -= values[i] > threshold
            for i in range(found):
                if values[i] > threshold or (values[i] == threshold and equals > 0):
                    equals -= values[i] == threshold
                    latents[r, n] = places[i]
                    n += 1
            lengths[r] = n


@jit
@no_type_check
def _histogram(bits, shift, prefix, counts):
    """Count the positive values that begin with `prefix` by their 16 bits from `shift` on."""
    parts = counts.shape[0]
    for part in prange(parts):
        for r in range(part, bits.shape[0], parts):
            row = bits[r]
            for c in range(row.shape[0]):
                value = np.int64(row[c])
                if value > 0 and (value >> shift) >> 16 == prefix:
                    counts[part, (value >> shift) & 0xFFFF] += 1


def _kth_and_ties(bits: np.ndarray, wanted: int) -> tuple[int, int]:
    """The `wanted`-th largest of all bits, 16 bits at a time, and how many equal to it are due.

    Both are 0 if fewer are positive.
    """
    prefix = 0
    for shift in range(8 * bits.itemsize - 16, -1, -16):
        parts = np.zeros((set_threads(), 1 << 16), dtype=np.int64)
        _histogram(bits, shift, prefix, parts)
        counts = parts.sum(axis=0)
        at_least = counts[::-1].cumsum()  # entry i: how many are in the i + 1 highest bins
        if at_least[-1] < wanted or wanted == 0:
            return 0, 0  # fewer are positive than wanted; only the first round can tell
        i = int(np.searchsorted(at_least, wanted))
        wanted -= int(at_least[i] - counts[::-1][i])
        prefix = (prefix << 16) | (len(counts) - 1 - i)
    return prefix, wanted
