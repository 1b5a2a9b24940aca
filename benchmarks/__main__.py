"""Run every benchmark, one after the other: python -m benchmarks [--quick]."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NAMES = ("speed", "loader", "harvest", "scaling", "dead")


def main(argv: Sequence[str] | None = None) -> None:
    """Each in a process of its own, so that none inherits another's memory or threads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: do they run at all?")
    parser.add_argument("--out", type=Path, help="folder of the results")
    given = parser.parse_args(argv)
    options = ["--quick"] if given.quick else []
    options += [f"--out={given.out.absolute()}"] if given.out else []
    root = Path(__file__).resolve().parent.parent
    for name in NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}", *options]
        subprocess.run(command, cwd=root, check=True)


if __name__ == "__main__":
    main()
