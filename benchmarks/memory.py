"""Peak memory of a few training steps, each contender in a process of its own.

python -m benchmarks.memory "l1, auto"          one of them, as benchmarks.speed asks for it
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import Cell, Spread, Table

CONTENDERS = {
    "l1": ("tied, auto", "l1, auto", "sae-lens l1", "dictionary_learning l1"),
    "topk": ("topk, auto", "sae-lens topk", "dictionary_learning topk", "sparsify topk"),
    "batch_topk": ("batch_topk, auto", "sae-lens batch_topk", "dictionary_learning batch_topk"),
}
L0_OF_L1 = 64
STEPS = 5
STATUS = Path("/proc/self/status")


def main(argv: Sequence[str] | None = None) -> None:
    """Take a few steps and write what memory they took to stdout, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", help="its name in the table of benchmarks.speed")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--d-in", type=int, default=576)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--k", type=int, default=32)
    given = parser.parse_args(argv)
    measured = measure(given.contender, given.batch, given.d_in, given.d_sae, given.k)
    sys.stdout.write(json.dumps(measured) + "\n")


def measure(name: str, batch: int, d_in: int, d_sae: int, k: int) -> dict[str, int] | None:
    """MiB resident before the first step (imports, data, weights) and at most; None: no such."""
    from benchmarks.contenders import ours
    from benchmarks.peers import peers
    from benchmarks.problem import make_problem

    architecture = next(word for word, names in CONTENDERS.items() if name in names)
    l0 = L0_OF_L1 if architecture == "l1" else k
    problem = make_problem(batch, d_in, d_sae, min(l0, d_sae // 4), batches=1)
    word, _, kernels = name.partition(", ")
    if kernels:
        found = ours(problem, word, [kernels], "cpu")
    else:
        found = peers(problem, architecture, "cpu")[name]()
    if isinstance(found, str):
        return None
    contender = found[0]
    before, peaks = _status("VmRSS"), []
    with peak_memory(peaks):
        for _ in range(STEPS):
            contender.step(problem.x[0])
    return {"before": before, "peak": peaks[0]}


@contextmanager
def peak_memory(found: list[int]) -> Iterator[None]:
    """Append the most MiB resident at once in the block; nothing where only Linux could tell."""
    if not STATUS.exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    yield
    found.append(_status("VmHWM"))


def memory_table(given: Any) -> Table:
    """A row for each contender; empty where the system does not tell (only Linux does)."""
    table = Table(
        f"Peak memory of {STEPS} steps, MiB resident, a process each",
        ["step", "before the first step", "at most", "the steps added"],
    )
    if given.device != "cpu" or not STATUS.exists():
        return table
    for names in CONTENDERS.values():
        for name in names:
            row: list[Cell | Spread] = [name, "not installed", None, None]
            if measured := _in_process(name, given):
                before, peak = measured["before"], measured["peak"]
                row = [name, before, peak, peak - before]
            table.rows.append(row)
    return table


def _in_process(name: str, given: Any) -> dict[str, int] | None:
    sizes = [
        f"--{option.replace('_', '-')}={getattr(given, option)}"
        for option in ("batch", "d_in", "d_sae", "k")
    ]
    command = [sys.executable, "-m", "benchmarks.memory", name, *sizes]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _status(name: str) -> int:
    """A line of the process's status, in MiB; `getrusage` would inherit the parent's peak."""
    lines = STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) // 1024


if __name__ == "__main__":
    main()
