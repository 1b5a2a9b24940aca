"""Run a benchmark as on a GPU where there is none: Triton's interpreter, nothing compiled for CPUs.

python -m benchmarks.rehearsal benchmarks.speed --quick
"""

import os
import runpy
import sys


def main() -> None:
    """Run the module that the command line names, with the rest of the line."""
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported
    from sae.kernels import ops, rows

    ops._MODULES["cpu"] = ops._MODULES["triton"]
    rows.compiled = lambda *_: None
    _, module, *sys.argv[1:] = sys.argv
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
