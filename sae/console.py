"""Console scripts of an installed wheel: `sae-train` is train.py, `sae-evaluate` is evaluate.py."""

import os
import runpy
import sys
from pathlib import Path


def programs() -> Path:
    """Put the folder of train.py, evaluate.py, conf and callbacks on the path of imports.

    A wheel has it inside `sae`, where it clashes with nothing; in a checkout it is the root.

    Returns:
        The folder. Processes that this one starts find it through PYTHONPATH.
    """
    package = Path(__file__).parent
    inside = package / "programs"
    folder = inside if inside.is_dir() else package.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        others = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([others] if others else [])])
    return folder


def train() -> None:
    """Run train.py."""
    runpy.run_path(str(programs() / "train.py"), run_name="__main__")


def evaluate() -> None:
    """Run evaluate.py."""
    runpy.run_path(str(programs() / "evaluate.py"), run_name="__main__")
