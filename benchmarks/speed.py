"""Vectors per second of the training step alone, beside other libraries and the dense limits.

python -m benchmarks.speed                      d_in 576, d_sae 4608, batch 4096: 10 to 20 minutes
python -m benchmarks.speed --d-in 2048 --d-sae 65536 --batch 8192 --device cuda
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.common import (
    Cell,
    Copy,
    DenseProducts,
    Result,
    Spread,
    Table,
    arguments,
    has_bf16,
    interleaved,
    ratios,
    spread,
)
from benchmarks.contenders import Contender, dense_steps, ours
from benchmarks.memory import memory_table
from benchmarks.peers import LIBRARIES, peers
from benchmarks.problem import Problem, make_problem
from sae.planning.costs import parameters, step_flops

OURS = {
    "l1": ("tied", "l1", "april", "gated", "jumprelu", "p_anneal", "lista", "thresholding"),
    "topk": ("topk",),
    "batch_topk": ("batch_topk", "matryoshka"),
}
COLUMNS = [
    "step", "L0", "vectors/s", "÷ dense bf16 by hand", "÷ fastest peer", "÷ fastest peer, bf16",
    "÷ sparsify", "of FLOP floor", "of byte floor",
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; returns the page that was written."""
    parser = arguments(__doc__)
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--l0", type=float, nargs="*", default=[32, 64, 100, 250])
    parser.add_argument("--k", type=int, default=32, help="of topk and batch_topk")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peers", action="store_true", help="only ours and the limits")
    parser.add_argument("--no-memory", action="store_true", help="no processes for peak memory")
    given = parser.parse_args(argv)
    if given.quick:
        given.d_in, given.d_sae, given.batch, given.l0, given.k = 32, 128, 64, [8], 4
    given.rounds = given.rounds or (2 if given.quick else 12)

    settings = {k: v for k, v in vars(given).items() if k != "out"}
    result = Result("speed", settings)
    cases = [("l1", l0) for l0 in given.l0] + [(name, given.k) for name in ("topk", "batch_topk")]
    bars: dict[str, list[tuple[str, str, Spread]]] = {}
    for architecture, l0 in cases:
        title = f"{architecture}, {'L0' if architecture == 'l1' else 'k ='} {l0:g}"
        table, bars[title] = _compare(title, architecture, l0, given, result)
        result.tables.append(table)
        gc.collect()
    if not given.no_memory:
        result.tables.append(memory_table(given))
    result.notes += [
        "Medians over rounds (lower quartile–upper quartile) of ratios within a round.",
        "÷ fastest peer: of sae-lens and dictionary_learning for the same architecture, as they "
        "ship (float32), and under bf16 autocast; ÷ sparsify: of the faster of these two.",
        "FLOP floor: a dense encode and sparse products for the rest, at the rate of the dense "
        "products of the same round; byte floor: the batch and Adam's reads and writes, at the "
        "rate of a plain copy.",
    ]
    return result.write(_folder(given.out), _plot(bars))


def _folder(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out


def _compare(
    title: str, architecture: str, l0: float, given: Any, result: Result
) -> tuple[Table, list[tuple[str, str, Spread]]]:
    device = given.device
    problem = make_problem(given.batch, given.d_in, given.d_sae, l0, device=device)
    contenders = [
        ours(problem, word, kernels, device)
        for word in OURS[architecture]
        for kernels in ("auto", "dense")
    ]
    contenders += dense_steps(problem, device)
    if not given.no_peers:
        found, notes = peers(problem, architecture, device)
        contenders += found
        result.notes += [note for note in notes if note not in result.notes]

    shape = problem.batch, problem.d_in, problem.d_sae
    limits = {"products float32": DenseProducts(*shape, torch.float32, device)}
    if has_bf16(device):
        limits["products bf16"] = DenseProducts(*shape, torch.bfloat16, device)
    copy = Copy(2**20 if given.quick else 2**28, device)
    turns = {c.name: _turn(c, problem, given.steps) for c in contenders}
    seconds = interleaved(limits | {"copy": copy} | turns, given.rounds, device=device)
    for contender in contenders:
        seconds[contender.name] = [s / given.steps for s in seconds[contender.name]]
    result.raw[title] = {"seconds": seconds}

    table, bars = Table(title, COLUMNS), []
    for name in limits:
        rate = spread([problem.batch / s for s in seconds[name]])
        by_hand = _against(seconds, name, _by_hand(contenders))
        table.rows.append([f"the five {name}", None, rate, by_hand, *[None] * 5])
        bars.append((name, "limit", rate))
    for contender in contenders:
        rate = spread([problem.batch / s for s in seconds[contender.name]])
        l0_found = (contender.encode(problem.x[0][:512]) != 0).sum().item() / len(
            problem.x[0][:512]
        )
        table.rows.append(
            [
                contender.name, round(l0_found, 1), rate,
                _against(seconds, contender.name, _by_hand(contenders)),
                *_against_peers(seconds, contender, contenders),
                *_floors(seconds, contender, architecture, problem, limits, copy),
            ]
        )  # fmt: skip
        bars.append((contender.name, contender.library, rate))
    return table, bars


def _turn(contender: Contender, problem: Problem, steps: int) -> Any:
    taken = 0

    def turn() -> None:
        nonlocal taken
        for _ in range(steps):
            contender.step(problem.x[taken % len(problem.x)])
            taken += 1

    return turn


def _by_hand(contenders: list[Contender]) -> list[str]:
    """The dense step in the fastest number format that the machine has."""
    return [c.name for c in contenders if "by hand" in c.name][:1]


def _against(seconds: dict[str, list[float]], name: str, others: list[str]) -> Spread | None:
    """How many times as fast as the fastest (by its median) of the others; None without any."""
    if not others:
        return None
    fastest = min(others, key=lambda other: spread(seconds[other]).median)
    return ratios(seconds[fastest], seconds[name])


def _against_peers(
    seconds: dict[str, list[float]], contender: Contender, contenders: list[Contender]
) -> list[Cell | Spread]:
    columns: list[Cell | Spread] = []
    for bf16 in (False, True):
        others = [c.name for c in contenders if c.library in LIBRARIES[:2] and c.bf16 == bf16]
        columns.append(_against(seconds, contender.name, others))
    sparsify = [c.name for c in contenders if c.library == LIBRARIES[2]]
    return [*columns, _against(seconds, contender.name, sparsify)]


def _floors(
    seconds: dict[str, list[float]],
    contender: Contender,
    architecture: str,
    problem: Problem,
    limits: dict[str, DenseProducts],
    copy: Copy,
) -> list[Cell | Spread]:
    """The least time that arithmetic and memory allow, as shares of the time taken."""
    products = "products bf16" if "products bf16" in limits else "products float32"
    flops = problem.batch * step_flops(problem.d_in, problem.d_sae, problem.l0)
    word = contender.name.split(",")[0] if contender.library == "ours" else architecture
    # weights and both moments are read and written, gradients written and read, the batch is read
    numbers = 8 * parameters(word, problem.d_in, problem.d_sae) + problem.batch * problem.d_in
    taken = seconds[contender.name]
    by_flops = [s * flops / limits[products].flops for s in seconds[products]]
    by_bytes = [s * 4 * numbers / copy.bytes for s in seconds["copy"]]
    return [ratios(by_flops, taken), ratios(by_bytes, taken)]


def _plot(bars: dict[str, list[tuple[str, str, Spread]]]) -> Figure:
    colours = {"ours": "#0b7a75", "limit": "#999999", "by hand": "#555555"}
    longest = max(map(len, bars.values()))
    columns = min(3, len(bars))
    rows = -(-len(bars) // columns)
    figure = Figure(figsize=(6 * columns, (0.3 * longest + 0.8) * rows), layout="constrained")
    for i, (title, entries) in enumerate(bars.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        names, values = [e[0] for e in entries], [e[2] for e in entries]
        axes.barh(
            names,
            [v.median / 1000 for v in values],
            xerr=[
                [(v.median - v.low) / 1000 for v in values],
                [(v.high - v.median) / 1000 for v in values],
            ],
            color=[colours.get(e[1], "#d08c60") for e in entries],
        )
        axes.invert_yaxis()
        axes.set_title(title)
        axes.set_xlabel("thousand vectors/s")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
