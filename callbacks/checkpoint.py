"""Writes `last.ckpt`, so that a run killed at any moment resumes bit-identically.

While a run is under way the checkpoint before it is kept, as `previous.ckpt`: one that a disk
damaged costs one interval, and by the same rule the run ends as if nothing had happened.
"""

import errno
import logging
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from callbacks.interruption import Interrupted, handling, stop
from callbacks.metrics_csv import MetricsCSV
from sae.errors import ArtifactError
from sae.sharing import Stopped
from sae.training.checkpoints import CURVES, previous_file, read_checkpoint
from sae.training.ranks import any_rank
from sae.writing import refusal

__all__ = ["LastCheckpoint", "read_checkpoint"]
log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Saves every `every_steps` steps, at the end and when told to stop, atomically.

    The checkpoint of step n is written when step n + 1 begins: whatever Lightning, the module and
    the other callbacks do after a step (logging, validation) is complete then, so that a resumed
    run neither leaves it out nor does it twice. While a `SAEModule` suspects that it diverges,
    nothing is saved: the last good checkpoint stays.

    While it trains, SIGTERM, SIGUSR1 or Ctrl-C on any rank makes all ranks save where the next
    step begins and raise `Interrupted`; a second Ctrl-C does not wait for that. Lightning's own
    handlers are put aside: they stop in the middle of a validation, and on Slurm save from inside
    the handler.

    Args:
        path: File to write, for example `run/checkpoints/last.ckpt`.
        every_steps: Optimiser steps between two checkpoints.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path, self.every_steps = Path(path), every_steps
        self._last_saved = 0
        self._received: int | None = None
        self._handlers = ExitStack()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the step that the run starts or continues at; listen for signals."""
        self._last_saved, self._received = trainer.global_step, None
        self._handlers.enter_context(handling(self._note))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save if one is due, or if the run has to stop."""
        stopping = any_rank(self._received is not None, pl_module.device)
        due = trainer.global_step // self.every_steps > self._last_saved // self.every_steps
        if due or stopping:
            self._save(trainer)
        if stopping:
            self._stop(trainer)
        if (trainer.global_step + 1) // self.every_steps > self._last_saved // self.every_steps:
            pl_module.look = True  # pyright: ignore[reportArgumentType]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the finished run."""
        self._save(trainer, finished=True)
        self._handlers.close()
        if any_rank(self._received is not None, pl_module.device):  # heard in the last step
            self._stop(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note the checksum of the curves so far."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                checkpoint[CURVES] = logger.checksum

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Listen no longer; of several SAEs that are stopped together each saves its own step."""
        self._handlers.close()
        if isinstance(exception, Stopped) and exception.between:
            self._save(trainer)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            stop(number)
        self._received = number
        log.warning("%s: saving at the end of this step.", signal.Signals(number).name)

    def _stop(self, trainer: L.Trainer) -> NoReturn:
        heard = self._received or signal.SIGTERM  # if it was another rank
        raise Interrupted(heard, first=trainer.is_global_zero)

    def _save(self, trainer: L.Trainer, finished: bool = False) -> None:
        watch = getattr(trainer.lightning_module, "watch", None)
        if not finished and getattr(watch, "suspect", None):
            return
        self._last_saved = trainer.global_step
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        try:
            trainer.save_checkpoint(temporary)  # every rank must call it
        except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError
            self._refuse(error, temporary)
        if trainer.is_global_zero:
            if self.path.exists():
                os.replace(self.path, previous_file(self.path))
            os.replace(temporary, self.path)

    def _refuse(self, error: OSError | RuntimeError, temporary: Path) -> NoReturn:
        """Remove a half-written file, and raise an error with the size of the last checkpoint."""
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise error
        cause = error if isinstance(error, OSError) else OSError(errno.ENOSPC, "writing failed")
        cause.filename, cause.filename2 = str(self.path), None
        size = self.path.stat().st_size if self.path.exists() else None
        raise ArtifactError(refusal(cause, size)) from error
