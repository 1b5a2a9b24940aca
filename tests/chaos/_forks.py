"""Runs in forked children: what a program imports, which takes ten seconds, is imported once.

A child is the leader of a session of its own, so that it can be killed with all that it started.
"""

import ctypes
import importlib
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
    "SAE_AUTO": "lm=float32 sae=float32", "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled",
    "PYTHONPATH": str(ROOT),
}  # fmt: skip
MODULES = (
    "train", "evaluate", "lightning", "transformers", "zarr", "numba", "matplotlib.figure",
    "plotly.graph_objects", "jinja2", "sklearn.decomposition", "scipy.optimize", "pandas",
    "rich.table", "callbacks.from_config", "callbacks.trainer", "callbacks.checkpoint",
    "callbacks.manifest", "conf.hooks", "sae.activations.from_config", "sae.activations.datamodule",
    "sae.artifacts", "sae.evals.from_config", "sae.planning", "sae.reports",
    "sae.training.from_config", "sae.training.baselines",
    "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.bash_completion",
)  # fmt: skip
SECONDS = 240


def prepare() -> None:
    """Import, with one thread: a fork has no other threads."""
    os.environ.update(ENVIRONMENT)
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    _warm()


def _warm() -> None:
    """What the first call of a process does.

    Nothing with gradients and no parallel kernel: their threads do not survive a fork.
    """
    import numba

    from sae.reports import page

    numba.njit(lambda x: x + 1)(1)
    page._packed_plotly()
    page._template()


class Child:
    """A function in a forked process.

    Args:
        function: Its exit status is what it returns (None: 0).
        log: File for what it prints.
        environment: Variables that only the child has.
    """

    def __init__(
        self,
        function: Callable[[], int | None],
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log, self.status = log, None
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(function, log, environment or {}))
        with suppress(OSError):  # the child does the same; whoever is first
            os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float = SECONDS) -> int | None:
        """Exit status, negative for a signal; None if it still runs."""
        end = time.monotonic() + seconds
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.01)
        return self.status

    def end(self) -> int:
        """Its exit status; one that hangs is killed (-9)."""
        if self.wait() is None:
            self.kill()
        return self.wait() or 0

    def kill(self) -> None:
        """SIGKILL for it and all that it started, in sessions of their own too."""
        started = []
        with suppress(psutil.Error):
            started = psutil.Process(self.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for process in started:
            with suppress(psutil.Error):
                process.kill()
        self.wait()

    def kill_alone(self, seconds: float = 20) -> list[int]:
        """SIGKILL for it alone; processes that it started and that run on after so long."""
        started = psutil.Process(self.pid).children(recursive=True)
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        _, alive = psutil.wait_procs(started, timeout=seconds)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        return [process.pid for process in alive]

    def send(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_line(self) -> str:
        lines = [line for line in self.output().splitlines() if line.strip()]
        return lines[-1] if lines else ""


def _end_with_parent() -> None:
    """On Linux: SIGKILL when the process that forked this one has ended."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _run(function: Callable[[], int | None], log: Path, environment: dict[str, str]) -> int:
    with suppress(OSError):
        os.setpgid(0, 0)
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ROOT)
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    status = 1
    try:
        status = function() or 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return status


def program(name: str, *words: str) -> Callable[[], None]:
    """`python train.py words` or `python evaluate.py words`, without the imports."""

    def call() -> None:
        sys.argv = [f"{name}.py", *words]
        sys.orig_argv = [sys.executable, *sys.argv]
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")

    return call
