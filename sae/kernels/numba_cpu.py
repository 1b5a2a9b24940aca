"""The sparse products on a CPU, compiled by Numba with all vector instructions the machine has.

Positive floats are ordered as the integers with the same bits, and negative ones are negative
integers, so selection compares integers and one code serves bfloat16, float16 and float32.
Every output element is summed by one thread in a fixed order: results do not depend on the number
of threads.
"""

import os
from pathlib import Path
from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit, prange
from torch import Tensor

from sae.kernels.ops import Pattern
from sae.provenance import cache_dir

Selected = tuple[Int[Tensor, " batch_plus_1"], Int[Tensor, " pairs"]]

if not os.access(Path(__file__).parent, os.W_OK):  # Numba stops where its cache has no place
    numba.config.CACHE_DIR = numba.config.CACHE_DIR or str(cache_dir() / "numba")  # pyright: ignore

_jit = njit(parallel=True, fastmath=True, nogil=True, cache=True)
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_FEWEST_GROUPS = 256
_PARTS_PER_THREAD = 8  # latents differ in how often they fire: smaller shares even that out


def select_positive(pre: Float[Tensor, "batch d_sae"], most: int) -> Selected | None:
    """See `sae.kernels.ops`."""
    bits, (zeros, none) = _bits(pre), _two(len(pre))
    offsets = _count(bits, zeros, none)
    return _fill(bits, zeros, none, offsets) if offsets[-1] <= most else None


def select_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`."""
    latents = torch.empty(len(pre), k, dtype=torch.int32)
    lengths = torch.empty(len(pre), dtype=torch.int64)
    _row_topk(_bits(pre), k, _set_threads(), latents.numpy(), lengths.numpy())
    full = torch.arange(k) < lengths[:, None]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return offsets, latents.flatten() if bool(full.all()) else latents[full]


def select_batch_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`."""
    bits, (thresholds, equals) = _bits(pre), _two(len(pre))
    threshold, left = _batch_threshold(bits, k * len(pre))
    thresholds[:] = threshold
    if left:
        _share_equals(bits, threshold, left, equals)
    return _fill(bits, thresholds, equals, _count(bits, thresholds, equals))


def transpose(
    pattern: Pattern,
) -> tuple[Int[Tensor, " d_sae_plus_1"], Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Pairs by latent: offsets, row of each, number of each in the pattern."""
    offsets = np.zeros(pattern.d_sae + 1, dtype=np.int64)
    rows = np.empty(len(pattern.latents), dtype=np.int32)
    order = np.empty(len(pattern.latents), dtype=np.int32)
    _transpose(pattern.offsets.numpy(), pattern.latents.numpy(), offsets, rows, order)
    return torch.from_numpy(offsets), torch.from_numpy(rows), torch.from_numpy(order)


def pair_dots(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, " pairs"]:
    """See `sae.kernels.ops`."""
    out = W.new_empty(len(pattern.latents))
    _set_threads()
    _pair_dots(_array(x), _array(W), pattern.offsets.numpy(), pattern.latents.numpy(), out.numpy())
    return out


def rows_sum(
    values: Float[Tensor, " pairs"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, "batch d_in"]:
    """See `sae.kernels.ops`."""
    out = W.new_empty(pattern.batch, W.shape[1])
    _sums(values, W, None, None, pattern.offsets.numpy(), pattern.latents.numpy(), out)
    return out


def latents_sum(
    values: Float[Tensor, " pairs"], x: Float[Tensor, "batch d_in"], pattern: Pattern
) -> Float[Tensor, "d_sae d_in"]:
    """See `sae.kernels.ops`."""
    return latents_sum_of_two(values, x, None, None, pattern)


def latents_sum_of_two(
    values: Float[Tensor, " pairs"],
    x: Float[Tensor, "batch d_in"],
    more_values: Float[Tensor, " pairs"] | None,
    more_x: Float[Tensor, "batch d_in"] | None,
    pattern: Pattern,
) -> Float[Tensor, "d_sae d_in"]:
    """The sum of two `latents_sum`, written once; of one if the others are None."""
    out = x.new_empty(pattern.d_sae, x.shape[1])
    offsets, rows, order = pattern.by_latent
    more_values = None if more_values is None else more_values[order]
    _sums(values[order], x, more_values, more_x, offsets.numpy(), rows.numpy(), out)
    return out


def _sums(
    values: Tensor,
    matrix: Tensor,
    more_values: Tensor | None,
    more_matrix: Tensor | None,
    offsets: np.ndarray,
    indices: np.ndarray,
    out: Tensor,
) -> None:
    """Row i of `out` sums `values[p] * matrix[indices[p]]` over p in `offsets[i]:offsets[i + 1]`.

    With more values and another matrix, their products are added before the row is left.
    """
    parts = _PARTS_PER_THREAD * _set_threads()
    # cuts between rows, so that each part has the same number of pairs and of rows
    work = offsets + 8 * np.arange(len(offsets))
    cuts = np.searchsorted(work, np.linspace(0, work[-1], parts + 1))
    if more_values is None or more_matrix is None:
        more_values, more_matrix = values[:0], matrix
    first, second = (_array(values), _array(matrix)), (_array(more_values), _array(more_matrix))
    _weighted_sums(*first, *second, offsets, indices, cuts, out.numpy())


def normalize_rows(weight: np.ndarray, out: np.ndarray, shortest: float) -> np.ndarray:
    """Write the rows at length 1 into `out` (which may be `weight`); returns their lengths."""
    norms = np.empty(len(weight), dtype=weight.dtype)
    _set_threads()
    _normalize_rows(weight, weight.dtype.type(shortest), norms, out)
    return norms


def project_off_rows(
    grad: np.ndarray, unit: np.ndarray, norms: np.ndarray, out: np.ndarray
) -> None:
    """`(grad - (grad . unit) unit) / norm` of each row; `out` may be `grad`."""
    _set_threads()
    _project_off_rows(grad, unit, norms, out)


def _bits(pre: Tensor) -> np.ndarray:
    return pre.view(_BITS[pre.element_size()]).numpy()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _two(length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(length, dtype=np.int64), np.zeros(length, dtype=np.int64)


def _set_threads() -> int:
    """As many threads as PyTorch uses, as far as Numba was started with so many."""
    wanted = torch.get_num_threads()
    threads = min(wanted, numba.config.NUMBA_NUM_THREADS)  # pyright: ignore
    numba.set_num_threads(threads)
    if torch.get_num_threads() != wanted:  # the start of Numba's threads resets OpenMP's number
        torch.set_num_threads(wanted)
    return threads


def _count(bits: np.ndarray, thresholds: np.ndarray, equals: np.ndarray) -> np.ndarray:
    """Offsets of rows that select all above their threshold and `equals` of those equal to it."""
    _set_threads()
    offsets = np.zeros(len(bits) + 1, dtype=np.int64)
    _count_above(bits, thresholds, offsets)
    offsets[1:] += equals
    return np.cumsum(offsets, out=offsets)


def _fill(
    bits: np.ndarray, thresholds: np.ndarray, equals: np.ndarray, offsets: np.ndarray
) -> Selected:
    latents = np.empty(offsets[-1], dtype=np.int32)
    _fill_above(bits, thresholds, equals, offsets, latents)
    return torch.from_numpy(offsets), torch.from_numpy(latents)


@_jit
@no_type_check  # which also keeps run-time type checkers out of compiled code
def _count_above(bits, thresholds, offsets):
    for r in prange(bits.shape[0]):
        row, threshold, n = bits[r], bits.dtype.type(thresholds[r]), 0
        for c in range(row.shape[0]):
            n += row[c] > threshold
        offsets[r + 1] = n


@_jit
@no_type_check
def _fill_above(bits, thresholds, equals, offsets, latents):
    for r in prange(bits.shape[0]):
        row, threshold, n, left = bits[r], bits.dtype.type(thresholds[r]), offsets[r], equals[r]
        if left == 0:
            for c in range(row.shape[0]):
                if row[c] > threshold:
                    latents[n] = c
                    n += 1
        else:
            for c in range(row.shape[0]):
                if row[c] >= threshold and (row[c] > threshold or left > 0):
                    left -= row[c] == threshold
                    latents[n] = c
                    n += 1


@njit(nogil=True, cache=True)
@no_type_check
def _kth_largest(values, k):
    """By bisection of the bits: each pass counts what is above. 0 if fewer than k are positive."""
    low, high = 0, 0
    for i in range(values.shape[0]):
        high = max(high, values[i])
    # fewer than k are above `high`; `low` is 0, or at least k are above low - 1
    while low < high:
        middle = low + (high - low) // 2
        threshold, above = values.dtype.type(middle), 0
        for i in range(values.shape[0]):
            above += values[i] > threshold
        if above < k:
            high = middle
        else:
            low = middle + 1
    return low


@_jit
@no_type_check
def _row_topk(bits, k, parts, latents, lengths):
    """Latents [rows k] of each row, rising, and how many of them there are.

    At least k values reach the k-th largest of the maxima of some groups of the row: few others
    do, so that the exact search has little left to look at.
    """
    width = bits.shape[1]
    groups = min(width, max(_FEWEST_GROUPS, 4 * k))
    for part in prange(parts):
        maxima = np.empty(groups, dtype=bits.dtype)
        places = np.empty(width, dtype=np.int32)
        values = np.empty(width, dtype=bits.dtype)
        for r in range(part * bits.shape[0] // parts, (part + 1) * bits.shape[0] // parts):
            row = bits[r]
            maxima[:] = row[:groups]
            for start in range(groups, width, groups):
                for c in range(min(groups, width - start)):
                    maxima[c] = max(maxima[c], row[start + c])
            bound = bits.dtype.type(max(_kth_largest(maxima, k), 1))
            found = 0
            for c in range(width):
                if row[c] >= bound:
                    places[found] = c
                    values[found] = row[c]
                    found += 1
            threshold = bits.dtype.type(_kth_largest(values[:found], k))
            equals, n = k, 0
            for i in range(found):
                equals -= values[i] > threshold
            for i in range(found):
                if values[i] > threshold or (values[i] == threshold and equals > 0):
                    equals -= values[i] == threshold
                    latents[r, n] = places[i]
                    n += 1
            lengths[r] = n


@_jit
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


def _batch_threshold(bits: np.ndarray, wanted: int) -> tuple[int, int]:
    """The `wanted`-th largest of all bits, 16 bits at a time, and how many equal to it are due."""
    prefix = 0
    for shift in range(8 * bits.itemsize - 16, -1, -16):
        parts = np.zeros((_set_threads(), 1 << 16), dtype=np.int64)
        _histogram(bits, shift, prefix, parts)
        counts = parts.sum(axis=0)
        at_least = counts[::-1].cumsum()  # entry i: how many are in the i + 1 highest bins
        if at_least[-1] < wanted or wanted == 0:
            return 0, 0  # fewer are positive than wanted; only the first round can tell
        i = int(np.searchsorted(at_least, wanted))
        wanted -= int(at_least[i] - counts[::-1][i])
        prefix = (prefix << 16) | (len(counts) - 1 - i)
    return prefix, wanted


@_jit
@no_type_check
def _count_equal(bits, threshold, equals):
    for r in prange(bits.shape[0]):
        row, wanted, n = bits[r], bits.dtype.type(threshold), 0
        for c in range(row.shape[0]):
            n += row[c] == wanted
        equals[r] = n


def _share_equals(bits: np.ndarray, threshold: int, left: int, equals: np.ndarray) -> None:
    """The first `left` of the batch that equal the threshold, row by row."""
    _count_equal(bits, threshold, equals)
    before = np.cumsum(equals) - equals
    np.minimum(equals, np.maximum(left - before, 0), out=equals)


@njit(nogil=True, cache=True)
@no_type_check
def _transpose(offsets, latents, out_offsets, rows, order):
    """Counting sort."""
    for pair in range(latents.shape[0]):
        out_offsets[latents[pair] + 1] += 1
    for latent in range(1, out_offsets.shape[0]):
        out_offsets[latent] += out_offsets[latent - 1]
    free = out_offsets[:-1].copy()
    for row in range(offsets.shape[0] - 1):
        for pair in range(offsets[row], offsets[row + 1]):
            place = free[latents[pair]]
            rows[place], order[place] = row, pair
            free[latents[pair]] = place + 1


@_jit
@no_type_check
def _pair_dots(x, W, offsets, latents, out):
    """Four latents at a time: x is loaded once for them, and four rows of W are fetched at once."""
    for r in prange(offsets.shape[0] - 1):
        row, pair, end, zero = x[r], offsets[r], offsets[r + 1], out.dtype.type(0)
        while pair + 4 <= end:
            w0, w1 = W[latents[pair]], W[latents[pair + 1]]
            w2, w3 = W[latents[pair + 2]], W[latents[pair + 3]]
            dot0, dot1, dot2, dot3 = zero, zero, zero, zero
            for c in range(row.shape[0]):
                dot0 += row[c] * w0[c]
                dot1 += row[c] * w1[c]
                dot2 += row[c] * w2[c]
                dot3 += row[c] * w3[c]
            out[pair], out[pair + 1], out[pair + 2], out[pair + 3] = dot0, dot1, dot2, dot3
            pair += 4
        while pair < end:
            weights, dot = W[latents[pair]], zero
            for c in range(row.shape[0]):
                dot += row[c] * weights[c]
            out[pair] = dot
            pair += 1


@njit(fastmath=True, nogil=True, cache=True)
@no_type_check
def _add_rows(values, matrix, indices, pair, end, total):
    """Four at a time: the total is loaded and stored once for them."""
    while pair + 4 <= end:
        m0, m1 = matrix[indices[pair]], matrix[indices[pair + 1]]
        m2, m3 = matrix[indices[pair + 2]], matrix[indices[pair + 3]]
        v0, v1, v2, v3 = values[pair], values[pair + 1], values[pair + 2], values[pair + 3]
        for c in range(total.shape[0]):
            total[c] += (v0 * m0[c] + v1 * m1[c]) + (v2 * m2[c] + v3 * m3[c])
        pair += 4
    while pair < end:
        value, row = values[pair], matrix[indices[pair]]
        for c in range(total.shape[0]):
            total[c] += value * row[c]
        pair += 1


@_jit
@no_type_check
def _weighted_sums(values, matrix, more_values, more_matrix, offsets, indices, cuts, out):
    for part in prange(cuts.shape[0] - 1):
        for i in range(cuts[part], min(cuts[part + 1], out.shape[0])):
            out[i] = 0
            _add_rows(values, matrix, indices, offsets[i], offsets[i + 1], out[i])
            if more_values.shape[0] > 0:
                _add_rows(more_values, more_matrix, indices, offsets[i], offsets[i + 1], out[i])


@_jit
@no_type_check
def _normalize_rows(weight, shortest, norms, out):
    for r in prange(weight.shape[0]):
        row, target, square = weight[r], out[r], weight.dtype.type(0)
        for c in range(row.shape[0]):
            square += row[c] * row[c]
        norm = max(weight.dtype.type(np.sqrt(square)), shortest)
        norms[r] = norm
        factor = weight.dtype.type(1) / norm
        for c in range(row.shape[0]):
            target[c] = row[c] * factor


@_jit
@no_type_check
def _project_off_rows(grad, unit, norms, out):
    for r in prange(grad.shape[0]):
        row, along, target, dot = grad[r], unit[r], out[r], grad.dtype.type(0)
        for c in range(row.shape[0]):
            dot += row[c] * along[c]
        factor = grad.dtype.type(1) / norms[r]
        for c in range(row.shape[0]):
            target[c] = (row[c] - dot * along[c]) * factor
