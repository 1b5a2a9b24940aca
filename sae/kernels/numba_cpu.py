"""The sparse products on a CPU, compiled by Numba with all vector instructions the machine has.

Every output element is summed by one thread in a fixed order: results do not depend on the number
of threads. The selections of this back end are in `numba_selections`.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float
from numba import njit, prange
from torch import Tensor

from sae.kernels.numba_jit import jit, jit_exactly, set_threads
from sae.kernels.numba_selections import (
    select_above,
    select_above_bf16,
    select_batch_topk,
    select_positive,
    select_topk,
)
from sae.kernels.pattern import ByLatent, Pattern

__all__ = [
    "jump_gradients",
    "jump_gradients_bf16",
    "latents_sum",
    "normalize_rows",
    "pair_dots",
    "project_off_rows",
    "quantize_rows",
    "rows_sum",
    "select_above",
    "select_above_bf16",
    "select_batch_topk",
    "select_positive",
    "select_topk",
    "transpose",
]

_PARTS_PER_THREAD = 8  # latents differ in how often they fire: smaller shares even that out
_ROWS_SUMMED = 64
_SMALLEST_STEP = 1e-20  # of rows of zeros


def transpose(pattern: Pattern) -> ByLatent:
    """Pairs by latent: offsets, row of each, number of each in the pattern."""
    offsets = np.zeros(pattern.d_sae + 1, dtype=np.int64)
    rows = np.empty(len(pattern.latents), dtype=np.int32)
    order = np.empty(len(pattern.latents), dtype=np.int32)
    _transpose(pattern.offsets.numpy(), pattern.latents.numpy(), offsets, rows, order)
    return ByLatent(*map(torch.from_numpy, (offsets, rows, order)))


def pair_dots(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, " pairs"]:
    """See `sae.kernels.ops`."""
    out = W.new_empty(len(pattern.latents))
    set_threads()
    _pair_dots(_array(x), _array(W), pattern.offsets.numpy(), pattern.latents.numpy(), out.numpy())
    return out


def rows_sum(
    values: Float[Tensor, " pairs"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, "batch d_in"]:
    """See `sae.kernels.ops`."""
    out = W.new_empty(pattern.batch, W.shape[1])
    _sums(values, W, pattern.offsets.numpy(), pattern.latents.numpy(), out)
    return out


def latents_sum(
    values: Float[Tensor, " pairs"], x: Float[Tensor, "batch d_in"], pattern: Pattern
) -> Float[Tensor, "d_sae d_in"]:
    """See `sae.kernels.ops`."""
    out = x.new_empty(pattern.d_sae, x.shape[1])
    offsets, rows, order = pattern.by_latent(transpose)
    _sums(values.index_select(0, order), x, offsets.numpy(), rows.numpy(), out)
    return out


def _sums(
    values: Tensor, matrix: Tensor, offsets: np.ndarray, indices: np.ndarray, out: Tensor
) -> None:
    """Row i of `out` sums `values[p] * matrix[indices[p]]`, p in `offsets[i]:offsets[i + 1]`."""
    parts = _PARTS_PER_THREAD * set_threads()
    # cuts between rows, so that each part has the same number of pairs and of rows
    work = offsets + 8 * np.arange(len(offsets))
    cuts = np.searchsorted(work, np.linspace(0, work[-1], parts + 1))
    _weighted_sums(_array(values), _array(matrix), offsets, indices, cuts, out.numpy())


def normalize_rows(weight: np.ndarray, out: np.ndarray, shortest: float) -> np.ndarray:
    """Write the rows at length 1 into `out` (which may be `weight`); returns their lengths."""
    norms = np.empty(len(weight), dtype=weight.dtype)
    set_threads()
    _normalize_rows(weight, weight.dtype.type(shortest), norms, out)
    return norms


def project_off_rows(
    grad: np.ndarray, unit: np.ndarray, norms: np.ndarray, out: np.ndarray
) -> None:
    """`(grad - (grad . unit) unit) / norm` of each row; `out` may be `grad`."""
    set_threads()
    _project_off_rows(grad, unit, norms, out)


def quantize_rows(
    matrix: Float[Tensor, "rows width"],
    counted: Float[Tensor, " width"],
    levels: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Float[Tensor, "rows 1"], Float[Tensor, "rows 1"]]:
    """Whole numbers -levels to levels, and the steps and norms of rows.

    Unsigned ones are 128 more. Columns whose `counted` is 0 and not 1 are taken as 0.
    """
    out = torch.empty(matrix.shape, dtype=dtype)
    steps, norms = matrix.new_empty(2, len(matrix), 1)
    minus = 0 if dtype == torch.uint8 else 128
    set_threads()
    _quantize_rows(
        _array(matrix), _array(counted), levels, minus, out.numpy(),
        steps.view(-1).numpy(), norms.view(-1).numpy(),
    )  # fmt: skip
    return out, steps, norms


def jump_gradients(
    of_f: np.ndarray, to_values: Tensor, at_zero: float | Tensor, pre: np.ndarray,
    theta: np.ndarray, bandwidth: float, fires: Pattern,
) -> np.ndarray:  # fmt: skip
    """See `sae.kernels.jumps`; both sums, one under the other."""
    number, pairs = of_f.dtype.type, (fires.offsets.numpy(), fires.latents.numpy())
    # of fixed parts of the rows: sums do not depend on the number of threads
    sums = np.zeros((-(-len(of_f) // _ROWS_SUMMED), 2, len(theta)), dtype=of_f.dtype)
    set_threads()
    _jump_gradients(
        of_f, _array(to_values), number(at_zero), pre, theta, number(bandwidth), *pairs, sums
    )
    return sums.sum(axis=0)


def jump_gradients_bf16(
    of_f: Tensor, to_values: Tensor, at_zero: float | Tensor, pre: Tensor, theta: Tensor,
    bandwidth: float, fires: Pattern,
) -> np.ndarray:  # fmt: skip
    """`jump_gradients` of bfloat16 matrices; numbers are widened row by row, sums are float32."""
    bits = [matrix.view(torch.int16).numpy().view(np.uint16) for matrix in (of_f, pre)]
    sums = np.zeros((-(-len(of_f) // _ROWS_SUMMED), 2, len(theta)), dtype=np.float32)
    set_threads()
    _jump_gradients_bf16(
        bits[0], _array(to_values), np.float32(at_zero), bits[1], theta.numpy(),
        np.float32(bandwidth), fires.offsets.numpy(), fires.latents.numpy(), sums,
    )  # fmt: skip
    return sums.sum(axis=0)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


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


@jit
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


@jit
@no_type_check
def _weighted_sums(values, matrix, offsets, indices, cuts, out):
    for part in prange(cuts.shape[0] - 1):
        for i in range(cuts[part], min(cuts[part + 1], out.shape[0])):
            out[i] = 0
            _add_rows(values, matrix, indices, offsets[i], offsets[i + 1], out[i])


@jit
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


@jit
@no_type_check
def _project_off_rows(grad, unit, norms, out):
    for r in prange(grad.shape[0]):
        row, along, target, dot = grad[r], unit[r], out[r], grad.dtype.type(0)
        for c in range(row.shape[0]):
            dot += row[c] * along[c]
        factor = grad.dtype.type(1) / norms[r]
        for c in range(row.shape[0]):
            target[c] = (row[c] - dot * along[c]) * factor


@jit
@no_type_check
def _quantize_rows(matrix, counted, levels, minus, out, steps, norms):
    half, shortest = matrix.dtype.type(128.5), matrix.dtype.type(_SMALLEST_STEP)
    for r in prange(matrix.shape[0]):
        row, target, largest, square = matrix[r], out[r], shortest, matrix.dtype.type(0)
        for c in range(row.shape[0]):
            value = row[c] * counted[c]
            largest = max(largest, abs(value))
            square += value * value
        factor = matrix.dtype.type(levels) / largest
        steps[r], norms[r] = matrix.dtype.type(1) / factor, np.sqrt(square)
        for c in range(row.shape[0]):  # positive, so that cutting off rounds
            target[c] = np.int32(row[c] * counted[c] * factor + half) - minus


@njit(nogil=True, cache=True)
@no_type_check
def _jump_row(row, at_zero, at, theta, bandwidth, of_theta, of_bias):
    """Gradient of f, in place, into that of the pre-activations `at`, for one vector."""
    half, zero = bandwidth / row.dtype.type(2), row.dtype.type(0)
    for c in range(row.shape[0]):
        g, above = row[c] + at_zero, at[c] - theta[c]
        jump = g * theta[c] / bandwidth if abs(above) < half else zero
        of_pre = jump + g if above > zero else jump
        of_theta[c] -= jump
        of_bias[c] += of_pre
        row[c] = of_pre


@jit_exactly
@no_type_check
def _jump_gradients(of_f, to_values, at_zero, pre, theta, bandwidth, offsets, latents, sums):
    for part in prange(sums.shape[0]):
        of_theta, of_bias = sums[part, 0], sums[part, 1]
        for r in range(part * _ROWS_SUMMED, min((part + 1) * _ROWS_SUMMED, of_f.shape[0])):
            row, at = of_f[r], pre[r]
            for pair in range(offsets[r], offsets[r + 1]):
                row[latents[pair]] += to_values[pair]
            _jump_row(row, at_zero, at, theta, bandwidth, of_theta, of_bias)


@jit_exactly
@no_type_check
def _jump_gradients_bf16(of_f, to_values, at_zero, pre, theta, bandwidth, offsets, latents, sums):
    width = of_f.shape[1]
    for part in prange(sums.shape[0]):
        of_theta, of_bias = sums[part, 0], sums[part, 1]
        wide, wide_pre = np.empty(width, np.uint32), np.empty(width, np.uint32)
        row, at = wide.view(np.float32), wide_pre.view(np.float32)
        for r in range(part * _ROWS_SUMMED, min((part + 1) * _ROWS_SUMMED, of_f.shape[0])):
            for c in range(width):
                wide[c] = np.uint32(of_f[r, c]) << np.uint32(16)
                wide_pre[c] = np.uint32(pre[r, c]) << np.uint32(16)
            for pair in range(offsets[r], offsets[r + 1]):
                row[latents[pair]] += to_values[pair]
            _jump_row(row, at_zero, at, theta, bandwidth, of_theta, of_bias)
            for c in range(width):  # to the nearest, of two as near to the even one
                even = (wide[c] >> np.uint32(16)) & np.uint32(1)
                of_f[r, c] = np.uint16((wide[c] + np.uint32(0x7FFF) + even) >> np.uint32(16))
