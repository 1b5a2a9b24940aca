"""Costs of a training step as d_sae, batch, L0, tokens and the number of SAEs in a pass grow.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --device cuda --shapes 768x24576 2048x65536     the crossing alone

Finds the share of firing latents up to which sparse products beat dense ones: SPARSE_BELOW in
sae/dictionaries/base.py.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    Cell,
    DenseProducts,
    Result,
    Spread,
    Table,
    arguments,
    drawn,
    has_bf16,
    interleaved,
    ratios,
    spread,
)
from benchmarks.contenders import OurStep, ours
from benchmarks.memory import peak_memory
from benchmarks.problem import make_problem
from benchmarks.runs import temporary_cache
from benchmarks.stores import StoredVectors
from sae.activations.datamodule import ActivationDataModule
from sae.dictionaries import build_dictionary
from sae.dictionaries.products import SPARSE_BELOW
from sae.lockstep import lockstep
from sae.reports.style import GREY, axes_of

Curves = dict[str, list[tuple[float, Spread]]]


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; returns the page that was written."""
    parser = arguments(__doc__)
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--shapes", nargs="*", help="<d_in>x<d_sae>: only where sparse L1 steps win"
    )
    parser.add_argument("--l0", type=int, nargs="*", default=[16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--batch", type=int, default=8192, help="with --shapes")
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (2 if given.quick else 8)
    if given.quick:
        given.d_in = 16
    result = Result(given.name or "scaling", {k: v for k, v in vars(given).items() if k != "out"})
    if given.shapes:
        table = Table(
            f"L1, batch {given.batch}: time of the dense step ÷ that of the sparse one",
            ["d_in x d_sae", *(f"L0 {l0}" for l0 in given.l0), "equal at a share of"],
        )
        result.tables.append(table)
        for row in map(partial(_crossing_of_shape, given), given.shapes):
            table.rows.append(row)
            result.write(given.out, show=False)  # as far as it came
        return result.write(given.out)
    curves: dict[str, Curves] = {}
    for measure in (_sizes, _batches, _crossing):
        table, curves[table.title] = measure(given)
        result.tables.append(table)
    result.tables += [_tokens(given), _members(given)]
    result.notes += [
        "÷ products: the five dense products of the same shapes in the fastest format, in time.",
        f"SPARSE_BELOW is {SPARSE_BELOW:g} now.",
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    return result.write(given.out, drawn(_plot, curves))


def _steps(
    given: Any, batch: int, d_sae: int, l0: float, forms: Sequence[tuple[str, str]]
) -> dict[str, list[float]]:
    """Seconds of a step for each (architecture, kernels), and of the `products`."""
    problem = make_problem(batch, given.d_in, d_sae, l0, batches=2, device=given.device)
    dtype = torch.bfloat16 if has_bf16(given.device) else torch.float32
    turns: dict[str, Callable[[], object]] = {
        "products": DenseProducts(batch, given.d_in, d_sae, dtype, given.device)
    }
    for architecture, kernels in forms:
        (contender,) = ours(problem, architecture, [kernels], given.device)
        turns[contender.name] = partial(contender.step, problem.x[0])
    return interleaved(turns, given.rounds, device=given.device)


FORMS = (("l1", "auto"), ("l1", "dense"), ("topk", "auto"))


def _grown(
    title: str, what: str, cases: Sequence[tuple[int, int, int]], given: Any
) -> tuple[Table, Curves]:
    """Rows for (value, batch, d_sae), at L0 64 or what fits."""
    names = [f"{architecture}, {kernels}" for architecture, kernels in FORMS]
    columns = [what, *(f"{name}: {unit}" for name in names for unit in ("vectors/s", "÷ products"))]
    table, curves = Table(title, columns), {name: [] for name in names}
    for value, batch, d_sae in cases:
        seconds = _steps(given, batch, d_sae, min(64, d_sae // 8), FORMS)
        row: list[Cell | Spread] = [value]
        for name in names:
            rate = spread([batch / s for s in seconds[name]])
            row += [rate, ratios(seconds[name], seconds["products"])]
            curves[name].append((value, rate))
        table.rows.append(row)
    return table, curves


def _sizes(given: Any) -> tuple[Table, Curves]:
    batch, ratios_ = (32, (2, 4)) if given.quick else (2048, (2, 4, 8, 16, 32))
    cases = [(r * given.d_in, batch, r * given.d_in) for r in ratios_]
    return _grown(f"Against d_sae, batch {batch}, L0 64", "d_sae", cases, given)


def _batches(given: Any) -> tuple[Table, Curves]:
    batches = (16, 32) if given.quick else (256, 512, 1024, 2048, 4096, 8192)
    cases = [(batch, batch, 8 * given.d_in) for batch in batches]
    return _grown("Against the batch, d_sae 8 d_in, L0 64", "batch", cases, given)


def _crossing(given: Any) -> tuple[Table, Curves]:
    """Dense over sparse time against the share of latents that fire, for several sizes."""
    shares = (0.05, 0.3) if given.quick else (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.2)
    sizes = (
        [(16, 4 * given.d_in)]
        if given.quick
        else [(512, 8 * given.d_in), (4096, 8 * given.d_in), (2048, 2 * given.d_in),
              (2048, 32 * given.d_in)]
    )  # fmt: skip
    table = Table(
        "Where dense products take over: their time ÷ that of sparse ones",
        ["batch, d_sae", *(f"{share:.1%} fire" for share in shares), "equal at a share of"],
    )
    curves: Curves = {}
    for batch, d_sae in sizes:
        name = f"{batch}, {d_sae}"
        curves[name] = []
        for share in shares:
            forms = (("l1", "dense"), ("l1", "sparse"))
            seconds = _steps(given, batch, d_sae, share * d_sae, forms)
            gain = ratios(seconds["l1, dense"], seconds["l1, sparse"])
            curves[name].append((share, gain))
        gains = [gain for _, gain in curves[name]]
        table.rows.append([name, *gains, _where_equal(shares, [gain.median for gain in gains])])
    return table, curves


def _crossing_of_shape(given: Any, shape: str) -> list[Cell | Spread]:
    """Dense over sparse time of an L1 step against L0; both forms train one dictionary."""
    d_in, d_sae = map(int, shape.split("x"))
    gains: dict[int, Spread] = {}
    for l0 in given.l0:
        if l0 < d_sae / 4:
            with suppress(torch.OutOfMemoryError):
                gains[l0] = _gain(given, d_in, d_sae, l0)
    shares = [l0 / d_sae for l0 in gains]
    equal = _where_equal(shares, [gain.median for gain in gains.values()]) if gains else None
    return [shape, *map(gains.get, given.l0), equal]


def _gain(given: Any, d_in: int, d_sae: int, l0: float) -> Spread:
    problem = make_problem(given.batch, d_in, d_sae, l0, batches=1, device=given.device)
    forms = ours(problem, "l1", ("dense", "sparse"), given.device)
    turns = {contender.name: partial(contender.step, problem.x[0]) for contender in forms}
    seconds = interleaved(turns, given.rounds, device=given.device)
    return ratios(seconds["l1, dense"], seconds["l1, sparse"])


def _where_equal(shares: Sequence[float], gains: Sequence[float]) -> str:
    """The share at which the gain falls through 1, interpolated in both logarithms.

    Example:
        >>> _where_equal([0.01, 0.04], [2.0, 0.5]), _where_equal([0.01, 0.04], [4.0, 2.0])
        ('0.020', 'above 0.04')
    """
    pairs = list(zip(shares, gains, strict=True))
    if pairs[0][1] < 1:
        return f"below {pairs[0][0]:g}"
    for (low, above), (high, below) in zip(pairs[:-1], pairs[1:], strict=True):
        if below < 1:
            part = math.log(above) / math.log(above / below)
            return f"{low * (high / low) ** part:.3f}"
    return f"above {pairs[-1][0]:g}"


def _tokens(given: Any) -> Table:
    """A pass over ever more rows on disk, and the memory of the process meanwhile."""
    sizes = (256, 512) if given.quick else (131_072, 262_144, 1_048_576)
    table = Table(
        "Against the rows on disk: a pass without training, 32,768 rows shuffled together",
        ["rows", "rows/s", "MiB resident at most"],
    )
    with temporary_cache():
        peaks: dict[str, list[int]] = {str(rows): [] for rows in sizes}
        turns: dict[str, Callable[[], object]] = {}
        for rows in sizes:
            data = _data(rows, 32_768, given)
            turns[str(rows)] = partial(_read, data, peaks[str(rows)])
        seconds = interleaved(turns, max(2, given.rounds // 2), warmup=1)
    for name, taken in seconds.items():
        peak = max(peaks[name], default=None)
        table.rows.append([int(name), spread([int(name) / s for s in taken]), peak])
    return table


def _data(rows: int, buffer_rows: int, given: Any) -> ActivationDataModule:
    source = StoredVectors(rows, given.d_in)
    source.prepare()
    batch = 32 if given.quick else 4096
    return ActivationDataModule(source, batch_size=batch, buffer_rows=buffer_rows)


def _read(data: ActivationDataModule, peaks: list[int]) -> None:
    with peak_memory(peaks):
        for _ in data.train_dataloader():
            pass


def _members(given: Any) -> Table:
    """SAEs that train in lockstep from one read, beside one alone: bare steps, no trainer."""
    counts = (1, 2) if given.quick else (1, 2, 4, 8)
    rows = 256 if given.quick else 131_072
    table = Table(
        f"SAEs in one pass over {rows:,} rows on disk (topk, k=32 or d_sae / 8)",
        ["members", "vectors/s of all together", "time ÷ members ÷ time of 1"],
    )
    with temporary_cache():
        data = _data(rows, rows // 2, given)
        turns: dict[str, Callable[[], object]] = {}
        for count in counts:
            steps = [OurStep(_topk(given), "cpu") for _ in range(count)]
            turns[str(count)] = partial(_together, steps, data)
        seconds = interleaved(turns, max(2, given.rounds // 2), warmup=1)
    read = data.steps * data.batch_size
    for count in counts:
        taken = [s / count for s in seconds[str(count)]]
        table.rows.append([count, spread([read / s for s in taken]), ratios(taken, seconds["1"])])
    return table


def _topk(given: Any) -> Any:
    d_sae = 8 * given.d_in
    settings = {"architecture": "topk", "dict_ratio": 8, "k": min(32, d_sae // 8)}
    return build_dictionary(settings, d_in=given.d_in)


def _together(steps: Sequence[OurStep], data: ActivationDataModule) -> None:
    def train(step: OurStep) -> None:
        for x in data.train_dataloader():
            step(x)

    lockstep({str(i): partial(train, step) for i, step in enumerate(steps)})


def _plot(curves: dict[str, Curves]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
    row = axes_of(figure, columns=len(curves))[0]
    for i, (axes, (title, lines)) in enumerate(zip(row, curves.items(), strict=True)):
        crossing = i == len(curves) - 1
        for name, points in lines.items():
            values = [value.median for _, value in points]
            axes.plot([x for x, _ in points], values, "o-", label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_ylabel("dense time ÷ sparse time" if crossing else "vectors/s")
        if crossing:
            axes.axhline(1, color=GREY, linewidth=1)
            axes.axvline(SPARSE_BELOW, color=GREY, linestyle=":", label="SPARSE_BELOW")
            axes.set_xlabel("share of latents that fire")
        axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
