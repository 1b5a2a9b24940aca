"""Vectors per second of the training step alone, beside other libraries and the dense limits.

python -m benchmarks.speed                      d_in 576, d_sae 4608, batch 4096: 10 to 20 minutes
python -m benchmarks.speed --d-in 2048 --d-sae 65536 --batch 8192 --device cuda

On a GPU no two contenders are there at once, for there may be room for one: each has rounds of its
own with the limits, and ratios between contenders are of different rounds.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import (
    Cell,
    Copy,
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
from benchmarks.contenders import Contender, Maker, configured, dense_steps, ours
from benchmarks.memory import memory_table
from benchmarks.peers import LIBRARIES, peers
from benchmarks.problem import Problem, make_problem
from sae.kernels import int8
from sae.memory import keep_freed_memory
from sae.planning.costs import parameters

OURS = {
    "l1": ("tied", "l1", "april", "gated", "jumprelu", "p_anneal", "lista", "thresholding"),
    "topk": ("topk",),
    "batch_topk": ("batch_topk", "matryoshka"),
}
INT8 = (
    "tied", "l1", "april", "gated", "p_anneal", "thresholding", "topk", "batch_topk", "matryoshka",
)  # fmt: skip
"""Architectures whose selection can be an int8 product (docs/adr/0023)."""
PRODUCTS_FLOAT32, PRODUCTS_BF16 = "products float32", "products bf16"
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
    parser.add_argument("--only", nargs="*", default=[], help="architectures; default: all")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peers", action="store_true", help="only ours and the limits")
    parser.add_argument("--no-memory", action="store_true", help="no processes for peak memory")
    parser.add_argument(
        "--keep-memory", action="store_true",
        help="keep freed memory for every contender, as train.py does for ours",
    )  # fmt: skip
    given = parser.parse_args(argv)
    if given.keep_memory:
        keep_freed_memory()
    if given.quick:
        given.d_in, given.d_sae, given.batch, given.l0, given.k = 32, 128, 64, [8], 4
    given.rounds = given.rounds or (2 if given.quick else 12)

    settings = {k: v for k, v in vars(given).items() if k != "out"}
    result = Result(given.name or "speed", settings)
    cases = [("l1", l0) for l0 in given.l0] + [(name, given.k) for name in ("topk", "batch_topk")]
    cases = [case for case in cases if set(OURS[case[0]]) & set(given.only or OURS[case[0]])]
    bars: dict[str, list[tuple[str, str, Spread]]] = {}
    for architecture, l0 in cases:
        title = f"{architecture}, {'L0' if architecture == 'l1' else 'k ='} {l0:g}"
        table, bars[title] = _compare(title, architecture, l0, given, result)
        result.tables.append(table)
        result.write(_folder(given.out), show=False)  # as far as it came
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
    return result.write(_folder(given.out), drawn(_plot, bars, _machine(result)))


def _folder(out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    return out


class Entry(NamedTuple):
    """The results of one timed contender."""

    name: str
    library: str
    bf16: bool
    l0: float
    floors: list[Cell | Spread]


def _compare(
    title: str, architecture: str, l0: float, given: Any, result: Result
) -> tuple[Table, list[tuple[str, str, Spread]]]:
    device = given.device
    problem = make_problem(given.batch, given.d_in, given.d_sae, l0, device=device)
    forms = ["auto", "dense"] if device == "cpu" else ["sparse", "dense"]
    if device == "cpu" and int8.available():
        forms.insert(1, "int8")
    words = [word for word in OURS[architecture] if not given.only or word in given.only]
    makers: dict[str, Maker] = {
        w: partial(ours, problem, w, [f for f in forms if f != "int8" or w in INT8], device)
        for w in words
    }
    makers |= dense_steps(problem, device)
    if not given.no_peers:
        makers |= peers(problem, architecture, device)
    limits = _limits(problem, given)
    names, together = [*makers], device == "cpu"
    entries: list[Entry] = []
    seconds: dict[str, list[float]] = {}
    for group in [names] if together else [[], *([name] for name in names)]:
        some = {name: makers[name] for name in group}
        try:
            found, timed = _timed(some, architecture, problem, limits, given, result)
        except torch.OutOfMemoryError:
            if not group:
                raise
            result.notes.append(f"{title}: {group[0]} does not fit into the GPU's memory")
            continue
        entries += found
        seconds = timed | seconds
        if not together and PRODUCTS_BF16 in limits:
            limits.pop(PRODUCTS_FLOAT32, None)  # slow, and no floor of anything
    result.raw[title] = {"seconds": seconds}

    table, bars = Table(title, COLUMNS), []
    for name in (name for name in (PRODUCTS_FLOAT32, PRODUCTS_BF16) if name in seconds):
        rate = spread([problem.batch / s for s in seconds[name]])
        by_hand = _against(seconds, name, _by_hand(entries))
        table.rows.append([f"the five {name}", None, rate, by_hand, *[None] * 5])
        bars.append((name, "limit", rate))
    for entry in entries:
        rate = spread([problem.batch / s for s in seconds[entry.name]])
        by_hand = _against(seconds, entry.name, _by_hand(entries))
        others = _against_peers(seconds, entry.name, entries)
        table.rows.append([entry.name, round(entry.l0, 1), rate, by_hand, *others, *entry.floors])
        bars.append((entry.name, entry.library, rate))
    return table, bars


def _limits(problem: Problem, given: Any) -> dict[str, DenseProducts | Copy]:
    """The least that a dense step must multiply, and a copy in memory."""
    shape = problem.batch, problem.d_in, problem.d_sae
    limits: dict[str, DenseProducts | Copy] = {
        PRODUCTS_FLOAT32: DenseProducts(*shape, torch.float32, given.device)
    }
    if has_bf16(given.device):
        limits[PRODUCTS_BF16] = DenseProducts(*shape, torch.bfloat16, given.device)
    return limits | {"copy": Copy(2**20 if given.quick else 2**28, given.device)}


def _timed(
    makers: Mapping[str, Maker],
    architecture: str,
    problem: Problem,
    limits: Mapping[str, DenseProducts | Copy],
    given: Any,
    result: Result,
) -> tuple[list[Entry], dict[str, list[float]]]:
    """Seconds of a step of each contender, and of the limits; all is freed at the end."""
    found: list[Contender] = []
    for made in (maker() for maker in makers.values()):
        if not isinstance(made, str):
            found += made
        elif made not in result.notes:
            result.notes.append(made)
    turns: dict[str, Callable[[], object]] = {**limits}
    turns |= {c.name: _turn(c, problem, given.steps) for c in found}
    seconds = interleaved(turns, given.rounds, device=given.device)
    entries = []
    for contender in found:
        seconds[contender.name] = [s / given.steps for s in seconds[contender.name]]
        x = problem.x[0][:512]
        fires = (contender.encode(x) != 0).sum().item() / len(x)
        floors = _floors(seconds, contender, architecture, problem, limits)
        entries.append(Entry(contender.name, contender.library, contender.bf16, fires, floors))
    return entries, seconds


def _turn(contender: Contender, problem: Problem, steps: int) -> Any:
    taken = 0

    def turn() -> None:
        nonlocal taken
        for _ in range(steps):
            contender.step(problem.x[taken % len(problem.x)])
            taken += 1

    return turn


def _by_hand(entries: list[Entry]) -> list[str]:
    """The dense step in the fastest number format that the machine has."""
    return [entry.name for entry in entries if "by hand" in entry.name][:1]


def _against(seconds: dict[str, list[float]], name: str, others: list[str]) -> Spread | None:
    """How many times as fast as the fastest (by its median) of the others; None without any."""
    if not others:
        return None
    fastest = min(others, key=lambda other: spread(seconds[other]).median)
    return ratios(seconds[fastest], seconds[name])


def _against_peers(
    seconds: dict[str, list[float]], name: str, entries: list[Entry]
) -> list[Cell | Spread]:
    columns: list[Cell | Spread] = []
    for bf16 in (False, True):
        others = [e.name for e in entries if e.library in LIBRARIES[:2] and e.bf16 == bf16]
        columns.append(_against(seconds, name, others))
    sparsify = [e.name for e in entries if e.library == LIBRARIES[2]]
    return [*columns, _against(seconds, name, sparsify)]


def _floors(
    seconds: dict[str, list[float]],
    contender: Contender,
    architecture: str,
    problem: Problem,
    limits: Mapping[str, DenseProducts | Copy],
) -> list[Cell | Spread]:
    """The least time that arithmetic and memory allow, as shares of the time taken."""
    name = PRODUCTS_BF16 if PRODUCTS_BF16 in limits else PRODUCTS_FLOAT32
    products, copy = limits[name], limits["copy"]
    assert isinstance(products, DenseProducts)
    assert isinstance(copy, Copy)
    # a multiply-add is 2: a dense encode; decode and three products backward over what fires
    flops = problem.batch * problem.d_in * (2 * problem.d_sae + 8 * problem.l0)
    word = contender.name.split(",")[0] if contender.library == "ours" else architecture
    # weights and both moments are read and written, gradients written and read, the batch is read
    trained = parameters(configured(problem, word), d_in=problem.d_in)
    numbers = 8 * trained + problem.batch * problem.d_in
    taken = seconds[contender.name]
    by_flops = [s * flops / products.flops for s in seconds[name]]
    by_bytes = [s * 4 * numbers / copy.bytes for s in seconds["copy"]]
    return [ratios(by_flops, taken), ratios(by_bytes, taken)]


def _machine(result: Result) -> str:
    """The processor that did the steps, for a title."""
    found = result.machine
    if result.settings["device"] != "cpu":
        return str(found["gpu"])
    vectors = "AVX512" if "avx512f" in found["vector_instructions"] else "AVX2"
    return f"{found['threads']} threads of {found['cpu']} ({vectors})"


def _plot(bars: dict[str, list[tuple[str, str, Spread]]], machine: str) -> Any:
    from benchmarks.speed_picture import plot

    return plot(bars, machine)


if __name__ == "__main__":
    main()
