"""The soak: whatever may happen to a run, by seed: `python tests/chaos --seeds 0 --share .1`.

Prints, for each attack and kind, how many times it was tried and survived, and the first failure;
exit status 1 if anything did not survive.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
for place in (HERE.parents[1], HERE.parent, HERE.parent / "unit", HERE.parent / "property", HERE):
    sys.path.insert(0, str(place))

from _forks import Child, prepare  # noqa: E402
from _tally import Tally  # noqa: E402

ATTACKS = (
    "flips", "commands", "artifacts", "nonsense", "disks", "neighbours", "signals", "kills",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--share", type=float, default=1.0, help="of what a seed tries")
    parser.add_argument("--only", nargs="+", default=ATTACKS, choices=ATTACKS)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="keep what was made, here")
    parser.add_argument("--out", type=Path, help="the counts, as JSON")
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
    prepare()
    start, total = time.monotonic(), Tally()
    waiting = [(name, seed) for seed in given.seeds for name in given.only]
    running: dict[tuple[str, int], Child] = {}
    while waiting or running:
        while waiting and len(running) < given.jobs:
            name, seed = task = waiting.pop(0)
            place = folder / f"{name}{seed}"
            running[task] = Child(_attack(name, seed, given.share, place), place / "attack.log")
        for task, child in list(running.items()):
            if child.wait(0.1) is not None:
                del running[task]
                _collect(task, child, folder, total, start)
                if given.out:
                    total.save(given.out)
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
    print(total.table())
    print(f"seeds {given.seeds}, share {given.share}, {time.monotonic() - start:.0f} s")
    return int(total.failed)


def _attack(name: str, seed: int, share: float, folder: Path):
    def call() -> None:
        tally = Tally(name)
        try:
            importlib.import_module(f"_{name}").attack(
                random.Random(f"{name} {seed}"), share, tally, folder
            )
        finally:
            tally.save(folder / "tally.json")

    return call


def _collect(task: tuple[str, int], child: Child, folder: Path, total: Tally, start: float) -> None:
    name, seed = task
    file = folder / f"{name}{seed}" / "tally.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    total.add(rows)
    if child.status:
        broken = Tally(name)
        broken.count("the attack itself", f"exit {child.status}: {child.last_line()}")
        total.add([vars(row) for row in broken.rows.values()])
    counts = f"{sum(r['survived'] for r in rows)} of {sum(r['tried'] for r in rows)}"
    print(f"{time.monotonic() - start:5.0f} s  {name} {seed}: {counts} survived", flush=True)


if __name__ == "__main__":
    sys.exit(main())
