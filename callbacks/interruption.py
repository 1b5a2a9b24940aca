"""End a run so that it can continue later: Ctrl-C, SIGTERM, SIGUSR1, a launcher that has ended.

SIGTERM is what a pre-empted or cancelled job gets, SIGUSR1 what `sbatch --signal=USR1@120` sends
ahead of the time limit.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

REQUEUE_STATUS = os.EX_TEMPFAIL  # 75, "try again later": the same command continues the run
_STATUS = {
    signal.SIGTERM: REQUEUE_STATUS,
    signal.SIGUSR1: REQUEUE_STATUS,
    signal.SIGINT: 128 + signal.SIGINT,  # a user stopped it: nobody should start it again
}


class Interrupted(SystemExit):
    """The run was told to stop, and can be continued.

    Args:
        number: The signal.
        first: True if this process is the first of those that train together. The others end
            with status 0: Lightning would kill the first one for anything else.

    Attributes:
        signal: The signal.
        code: Exit status: 75 asks for the job to be queued again, 130 is Ctrl-C.
    """

    def __init__(self, number: int, first: bool = True) -> None:
        self.signal = signal.Signals(number)
        super().__init__(_STATUS[self.signal] if first else 0)

    def __str__(self) -> str:
        """Name of the signal."""
        return self.signal.name


_WATCH_SECONDS = 1.0
_watching = threading.Lock()


def end_with_parent(parent: int | None = None) -> None:
    """In a worker process: end it, killed or not, when the process that started it has ended.

    A launcher that is killed cannot tell its workers, which would train on while the sweep is
    started anew. Elsewhere this does nothing: a program may outlive the shell that started it.

    Args:
        parent: Id of that process; None: the one that started this worker of multiprocessing.
    """
    if parent is None and (process := multiprocessing.parent_process()) is not None:
        parent = process.pid
    if parent is None or not _watching.acquire(blocking=False):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)  # as if it had been killed, which a run survives

    threading.Thread(target=watch, name="watches the launcher", daemon=True).start()


def stop(number: int, frame: Any = None) -> None:
    """A signal handler: end the program here and now."""
    raise Interrupted(number)


@contextmanager
def handling(handler: Callable[[int, Any], None] = stop) -> Iterator[None]:
    """Handle the three signals for a while; do nothing outside the main thread.

    A signal that the process was told to ignore (Ctrl-C under `nohup`) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, handler)
        for number in _STATUS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
