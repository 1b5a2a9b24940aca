"""The Triton kernels at the sizes of a GPU: against float64, twice the same, and how fast.

    python -m benchmarks.products --device cuda --shapes 768x24576 2048x65536

Exits with 1 where a kernel is wrong.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import Copy, Result, Table, arguments, interleaved, spread
from benchmarks.problem import FREQUENCY_SIGMA
from sae.kernels import Pattern, stock, triton_gpu

NEAR = {
    torch.float32: 1e-6,
    torch.bfloat16: 2**-7 if os.environ.get("TRITON_INTERPRET") == "1" else 2**-8,
}
"""Largest ||error|| / ||exact||: sums run in float32; bfloat16 is rounded once, to the nearest on a
GPU and towards zero by the interpreter."""
SAMPLE = 64
"""Rows and latents that are computed again in float64, and rows that are selected again."""


class Case(NamedTuple):
    """A kernel at a size.

    Attributes:
        run: What is timed.
        error: Of its result: ||error|| / ||exact||, or the share of rows selected otherwise.
        near: The largest error that is right.
        bytes: What it reads at least: of a gather, every row of every pair.
    """

    run: Callable[[], Any]
    error: Callable[[Any], float]
    near: float
    bytes: int


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; returns the page that was written."""
    parser = arguments(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["768x24576"], help="<d_in>x<d_sae>")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--k", type=int, default=64, help="latents of a vector")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (2 if given.quick else 10)
    result = Result(given.name or "products", {k: v for k, v in vars(given).items() if k != "out"})
    copy = Copy(2**20 if given.quick else 2**30, given.device)
    wrong, page = [], given.out
    for shape in given.shapes:
        table = Table(
            f"{shape}, batch {given.batch}, {given.k} latents a vector",
            ["kernel", "error", "allowed", "twice the same", "ms", "GB/s", "÷ a copy's"],
        )
        result.tables.append(table)
        for name, case in _cases(shape, given):
            first, second = case.run(), case.run()
            same, error = _equal(first, second), case.error(first)
            seconds = interleaved({name: case.run, "copy": copy}, given.rounds, device=given.device)
            rate = spread([case.bytes / 1e9 / s for s in seconds[name]])
            copied = spread([copy.bytes / 1e9 / s for s in seconds["copy"]])
            milliseconds = spread([1e3 * s for s in seconds[name]])
            share = rate.median / copied.median
            table.rows.append([name, error, case.near, str(same), milliseconds, rate, share])
            if not (same and error <= case.near):
                wrong.append(f"{shape} {name}")
        result.notes = [f"WRONG: {', '.join(wrong)}."] if wrong else []
        page = result.write(given.out, show=shape == given.shapes[-1])
    if wrong:
        sys.exit(1)
    return page


def _cases(shape: str, given: Any) -> Iterator[tuple[str, Case]]:
    d_in, d_sae = map(int, shape.split("x"))
    batch, k, device = given.batch, min(given.k, d_sae), given.device
    generator = torch.Generator(device).manual_seed(0)
    drawn: Any = {"generator": generator, "device": device}
    for dtype in (torch.bfloat16, torch.float32):
        word = str(dtype).removeprefix("torch.")
        pre = torch.randn(batch, d_sae, device=device, dtype=dtype, generator=generator)
        size = pre.nbytes
        few = pre[:SAMPLE].contiguous()
        for name in ("select_topk", "select_batch_topk"):
            yield f"{name} {word}", _selection(name, pre, few, k, size)
        shift = torch.special.ndtri(torch.tensor(1 - k / d_sae)).item()
        pre -= shift  # about k of a row stay positive
        few = pre[:SAMPLE].contiguous()
        yield f"select_positive {word}", _selection("select_positive", pre, few, few.numel(), size)
        del pre, few
    # some latents fire often and most rarely, as those of trained SAEs (benchmarks/problem.py)
    wanted = FREQUENCY_SIGMA * torch.randn(d_sae, **drawn)
    wanted = wanted - torch.rand(batch, d_sae, **drawn).log_().neg_().log_()
    latents = wanted.topk(k).indices.sort(1).values.flatten()
    del wanted
    pattern = Pattern(torch.arange(batch + 1, device=device) * k, latents.int(), d_sae)
    for dtype in (torch.bfloat16, torch.float32):
        x, W = torch.randn(batch, d_in, **drawn), torch.randn(d_sae, d_in, **drawn)
        values = torch.randn(len(latents), **drawn)
        parts = x.to(dtype), W.to(dtype), values.to(dtype)
        for name, case in _products(*parts, pattern).items():
            yield f"{name} {str(dtype).removeprefix('torch.')}", case


def _selection(name: str, pre: Tensor, few: Tensor, number: int, size: int) -> Case:
    """Compares the sampled rows with stock PyTorch's stable sort, and times all rows."""

    def run() -> Any:
        most = pre.numel() if name == "select_positive" else number
        return getattr(triton_gpu, name)(pre, most)

    def error(_: Any) -> float:
        found, expected = (getattr(module, name)(few, number) for module in (triton_gpu, stock))
        if len(found[1]) != len(expected[1]):
            return 1.0
        pairs = zip(found, expected, strict=True)
        return max((a.long() != b.long()).double().mean().item() for a, b in pairs)

    return Case(run, error, 0.0, size)


def _products(x: Tensor, W: Tensor, values: Tensor, pattern: Pattern) -> dict[str, Case]:
    near, d_in = NEAR[x.dtype], x.shape[1]
    size = len(pattern.latents) * d_in * x.element_size()
    rows, latents = pattern.rows, pattern.latents.long()
    end = int(pattern.offsets[min(SAMPLE, pattern.batch)])  # pairs of the first rows

    def dots(found: Tensor) -> float:
        exact = (x[rows[:end]].double() * W[latents[:end]].double()).sum(1)
        return _distance(found[:end], exact)

    def by_row(found: Tensor) -> float:
        exact = x.new_zeros(len(x), d_in, dtype=torch.float64)[:SAMPLE]
        atoms = values[:end, None].double() * W[latents[:end]].double()
        return _distance(found[:SAMPLE], exact.index_add_(0, rows[:end], atoms))

    def by_latent(found: Tensor) -> float:
        kept = latents < SAMPLE
        exact = x.new_zeros(min(SAMPLE, len(W)), d_in, dtype=torch.float64)
        vectors = values[kept, None].double() * x[rows[kept]].double()
        return _distance(found[:SAMPLE], exact.index_add_(0, latents[kept], vectors))

    return {
        "pair_dots": Case(lambda: triton_gpu.pair_dots(x, W, pattern), dots, near, size),
        "rows_sum": Case(lambda: triton_gpu.rows_sum(values, W, pattern), by_row, near, size),
        "latents_sum": Case(
            lambda: triton_gpu.latents_sum(values, x, pattern), by_latent, near, size
        ),
        "transpose": Case(
            lambda: triton_gpu.transpose(pattern),
            lambda found: float(not _equal(found, stock.transpose(pattern))),
            0.0,
            pattern.latents.nbytes,
        ),
    }


def _distance(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def _equal(one: Any, other: Any) -> bool:
    """Bit for bit, of a tensor or several."""
    if isinstance(one, Tensor):
        one, other = (one,), (other,)
    return all(torch.equal(a.double(), b.double()) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
