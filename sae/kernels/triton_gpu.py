"""The sparse products on a GPU, as Triton kernels.

Each output element is summed by one program in a fixed order, without atomics: results are the same
in every run. Sums run in float32, for float64 inputs in float64; offsets into matrices are int64.
A selection waits for the device once, to learn how many pairs there are; nothing else does.

Without a GPU these kernels were only run by Triton's interpreter, which checks what they compute
and neither how fast nor how they behave on a device, and compiled for one.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor
from triton.runtime import KernelInterface

from sae.kernels.pattern import ByLatent, Pattern

Selected = tuple[Int[Tensor, " batch_plus_1"], Int[Tensor, " pairs"]]

_SCAN = 1024  # pre-activations that a program reads at once
_PAIRS, _WIDTH = 16, 128  # pairs, and elements of their vectors, that a program holds at once


def select_positive(pre: Float[Tensor, "batch d_sae"], most: int) -> Selected | None:
    """See `sae.kernels.ops`."""
    zeros = pre.new_zeros(len(pre))
    above, _ = _count(pre, zeros)
    offsets = _offsets(above)
    pairs = int(offsets[-1])
    return _fill(pre, zeros, torch.zeros_like(above), offsets, pairs) if pairs <= most else None


def select_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`."""
    largest = _largest(pre, k)
    thresholds = largest.amin(1).clamp_min(0)
    above = (largest > thresholds[:, None]).sum(1)
    equals = (largest == thresholds[:, None]).sum(1) * (thresholds > 0)
    offsets = _offsets(above + equals)
    return _fill(pre, thresholds, equals, offsets, int(offsets[-1]))


def select_batch_topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Selected:
    """See `sae.kernels.ops`."""
    if len(pre) == 0:
        return select_topk(pre, k)  # of nothing there is no smallest
    largest = _largest(pre.flatten(), k * len(pre))
    threshold = largest.amin().clamp_min(0)
    thresholds = threshold.repeat(len(pre))
    above, equals = _count(pre, thresholds)
    left = (largest == threshold).sum() * (threshold > 0)
    before = equals.cumsum(0) - equals
    equals = equals.minimum((left - before).clamp_min(0))
    offsets = _offsets(above + equals)
    return _fill(pre, thresholds, equals, offsets, int(offsets[-1]))


def transpose(pattern: Pattern) -> ByLatent:
    """Pairs by latent: offsets, row of each, number of each in the pattern."""
    latents, order = pattern.latents.sort(stable=True)
    # a search, since `bincount` would wait for the device
    each = torch.arange(pattern.d_sae + 1, device=latents.device, dtype=latents.dtype)
    return ByLatent(torch.searchsorted(latents, each), pattern.rows[order], order)


def pair_dots(
    x: Float[Tensor, "batch d_in"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, " pairs"]:
    """See `sae.kernels.ops`."""
    out, d_in = W.new_empty(len(pattern.latents)), W.shape[1]
    parts = (x.contiguous(), W.contiguous(), pattern.offsets, pattern.latents.contiguous())
    _launch(_pair_dots, (pattern.batch,), out, *parts, d_in, PAIRS=_PAIRS, WIDTH=_width(d_in))
    return out


def rows_sum(
    values: Float[Tensor, " pairs"], W: Float[Tensor, "d_sae d_in"], pattern: Pattern
) -> Float[Tensor, "batch d_in"]:
    """See `sae.kernels.ops`."""
    return _sums(values, W, pattern.offsets, pattern.latents)


def latents_sum(
    values: Float[Tensor, " pairs"], x: Float[Tensor, "batch d_in"], pattern: Pattern
) -> Float[Tensor, "d_sae d_in"]:
    """See `sae.kernels.ops`."""
    offsets, rows, order = pattern.by_latent(transpose)
    return _sums(values[order], x, offsets, rows)


def _sums(values: Tensor, matrix: Tensor, offsets: Tensor, indices: Tensor) -> Tensor:
    """Row i sums `values[p] * matrix[indices[p]]` over p in `offsets[i]:offsets[i + 1]`."""
    d_in = matrix.shape[1]
    out, width = matrix.new_empty(len(offsets) - 1, d_in), _width(d_in)
    parts = (values.contiguous(), matrix.contiguous(), offsets, indices.contiguous())
    grid = (len(out), triton.cdiv(d_in, width))
    _launch(_weighted_sums, grid, out, *parts, d_in, PAIRS=_PAIRS, WIDTH=width)
    return out


def _largest(pre: Tensor, k: int) -> Tensor:
    """The k largest of the last dimension in any order, NaN as infinity."""
    largest = pre.topk(min(k, pre.shape[-1]), sorted=False).values
    return largest.where(~largest.isnan(), torch.inf)


def _count(pre: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Number of values of each row above its threshold, and number that equal it."""
    above, equals = torch.empty(2, len(pre), dtype=torch.int64, device=pre.device)
    _launch(_count_row, (len(pre),), pre, thresholds, above, equals, pre.shape[1], BLOCK=_SCAN)
    return above, equals


def _fill(pre: Tensor, thresholds: Tensor, equals: Tensor, offsets: Tensor, pairs: int) -> Selected:
    """Select of each row all above its threshold and the first `equals` of those equal to it."""
    latents = torch.empty(pairs, dtype=torch.int32, device=pre.device)
    parts = (pre, thresholds, equals, offsets, latents)
    _launch(_fill_row, (len(pre),), *parts, pre.shape[1], BLOCK=_SCAN)
    return offsets, latents


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _width(d_in: int) -> int:
    return min(_WIDTH, triton.next_power_of_2(d_in))


def _launch(
    kernel: KernelInterface,
    grid: tuple[int, ...],
    first: Tensor,
    *others: Tensor | int,
    **sizes: int,
) -> None:
    """Run a kernel on the device of its tensors, which need not be the current one."""
    total = tl.float64 if first.dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(first):
        # fused multiply-adds by name, since newer versions of Triton warn of a default
        kernel[grid](first, *others, SUM=total, enable_fp_fusion=True, **sizes)


@triton.jit
@no_type_check  # which also keeps run-time type checkers out of compiled code
def _count_row(pre, thresholds, above, equals, d_sae, SUM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    threshold = tl.load(thresholds + row).to(SUM)
    num_above = tl.zeros((BLOCK,), tl.int32)
    num_equal = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, d_sae, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(pre + row * d_sae + columns, columns < d_sae, float("-inf")).to(SUM)
        num_above += tl.where(value <= threshold, 0, 1)  # NaN too: it must reach the loss
        num_equal += (value == threshold).to(tl.int32)
    tl.store(above + row, tl.sum(num_above, 0))
    tl.store(equals + row, tl.sum(num_equal, 0))


@triton.jit
@no_type_check
def _fill_row(
    pre, thresholds, equals, offsets, latents, d_sae, SUM: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    threshold = tl.load(thresholds + row).to(SUM)
    left = tl.load(equals + row)
    first = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    for start in range(0, d_sae, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        value = tl.load(pre + row * d_sae + columns, columns < d_sae, float("-inf")).to(SUM)
        equal = (value == threshold).to(tl.int32)
        chosen = tl.where(value <= threshold, equal * (tl.cumsum(equal, 0) <= left), 1)
        places = first + tl.cumsum(chosen, 0) - 1
        # more NaN than may be chosen must not reach the next row
        tl.store(latents + places, columns, (chosen > 0) & (places < end))
        first += tl.sum(chosen, 0)
        left -= tl.sum(equal, 0)


@triton.jit
@no_type_check
def _pair_dots(
    out,
    x,
    W,
    offsets,
    latents,
    d_in,
    SUM: tl.constexpr,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    for start in range(first, end, PAIRS):
        pairs = start + tl.arange(0, PAIRS)
        given = pairs < end
        atoms = W + tl.load(latents + pairs, given, 0).to(tl.int64)[:, None] * d_in
        dots = tl.zeros((PAIRS, WIDTH), SUM)
        for begin in range(0, d_in, WIDTH):
            columns = begin + tl.arange(0, WIDTH)
            inside = columns < d_in
            vector = tl.load(x + row * d_in + columns, inside, 0).to(SUM)
            weights = tl.load(atoms + columns[None, :], given[:, None] & inside[None, :], 0)
            dots += vector[None, :] * weights.to(SUM)
        tl.store(out + pairs, tl.sum(dots, 1), given)


@triton.jit
@no_type_check
def _weighted_sums(
    out,
    values,
    matrix,
    offsets,
    indices,
    d_in,
    SUM: tl.constexpr,
    PAIRS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < d_in
    first = tl.load(offsets + row)
    end = tl.load(offsets + row + 1)
    total = tl.zeros((PAIRS, WIDTH), SUM)
    for start in range(first, end, PAIRS):
        pairs = start + tl.arange(0, PAIRS)
        given = pairs < end
        index = tl.load(indices + pairs, given, 0).to(tl.int64)
        vectors = matrix + index[:, None] * d_in + columns[None, :]
        vectors = tl.load(vectors, given[:, None] & inside[None, :], 0)
        total += tl.load(values + pairs, given, 0).to(SUM)[:, None] * vectors.to(SUM)
    tl.store(out + row * d_in + columns, tl.sum(total, 0), inside)
