"""Writes and reads `last.ckpt`, so that a run killed at any moment resumes bit-identically."""

import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from callbacks.interruption import Interrupted, handling, stop
from sae.activations.contexts import ContextDataModule
from sae.activations.datamodule import ActivationDataModule, check_same_data
from sae.activations.sources import ActivationSource
from sae.errors import ArtifactError
from sae.intact import require_content
from sae.lockstep import Stopped
from sae.training.ranks import any_rank

log = logging.getLogger(__name__)


def checkpoint_file(run_dir: Path) -> Path:
    """Where the checkpoint of a run is."""
    return run_dir / "checkpoints" / "last.ckpt"


def read_checkpoint(run_dir: Path) -> dict[str, Any] | None:
    """The checkpoint of a run, None where there is none yet.

    Raises:
        ArtifactError: If it is damaged.
    """
    file = checkpoint_file(run_dir)
    if not file.exists():
        return None
    require_content(file, ArtifactError)
    try:
        return torch.load(file, weights_only=True, mmap=True)
    except Exception as error:  # bytes that are no checkpoint can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(
            f"{file} is damaged ({reason}). Delete it to train from the start, or choose another "
            "run_dir."
        ) from None


def check_unchanged(checkpoint: Mapping[str, Any] | None, source: ActivationSource) -> None:
    """Refuse to continue on other activations, before they are harvested.

    Raises:
        StoreError: If the LM, the text or the folder behind them changed since.
    """
    names = (kind.__qualname__ for kind in (ActivationDataModule, ContextDataModule))
    state = next((checkpoint[name] for name in names if checkpoint and name in checkpoint), None)
    if state is not None:
        check_same_data(state["data"], source)


class LastCheckpoint(Checkpoint):
    """Saves every `every_steps` steps, at the end and when told to stop, atomically.

    The checkpoint of step n is written when step n + 1 begins: whatever Lightning, the module and
    the other callbacks do after a step (logging, validation) is complete then, so that a resumed
    run neither leaves it out nor does it twice.

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

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the finished run."""
        self._save(trainer)
        self._handlers.close()
        if any_rank(self._received is not None, pl_module.device):  # heard in the last step
            self._stop(trainer)

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

    def _save(self, trainer: L.Trainer) -> None:
        self._last_saved = trainer.global_step
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        trainer.save_checkpoint(temporary)  # every rank must call it
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
