"""Writes and reads `last.ckpt`, so that a run killed at any moment resumes bit-identically.

While a run is under way the checkpoint before it is kept, as `previous.ckpt`: one that a disk
damaged costs one interval, and by the same rule the run ends as if nothing had happened.
"""

import errno
import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Checkpoint

from callbacks.interruption import Interrupted, handling, stop
from callbacks.metrics_csv import MetricsCSV
from sae.activations.contexts import ContextDataModule
from sae.activations.datamodule import ActivationDataModule, check_same_data
from sae.activations.sources import ActivationSource
from sae.checksums import check_zip
from sae.errors import ArtifactError
from sae.intact import require_content
from sae.sharing import Stopped
from sae.training.ranks import any_rank
from sae.writing import refusal

log = logging.getLogger(__name__)

_CURVES = "metrics.csv"


def checkpoint_file(run_dir: Path) -> Path:
    """Where the checkpoint of a run is."""
    return run_dir / "checkpoints" / "last.ckpt"


def read_checkpoint(run_dir: Path) -> dict[str, Any] | None:
    """The checkpoint of a run, None where there is none yet.

    One that is damaged gives way to the one before it, which then is `last.ckpt`.

    Raises:
        ArtifactError: If it is damaged, and no earlier one is whole.
    """
    last, previous = checkpoint_file(run_dir), _previous(checkpoint_file(run_dir))
    damage: ArtifactError | None = None
    # the last one once more: another rank may have put the previous one in its place meanwhile
    for file in (last, previous, last):
        if not file.exists():
            continue
        try:
            content = _read(file)
        except ArtifactError as error:
            damage = damage or error
            continue
        if file == previous:
            if damage is not None:
                step = content["global_step"]
                log.warning("%s The checkpoint before it, of step %d, is used.", damage, step)
            if rank_zero_only.rank == 0:
                os.replace(previous, last)
        return content
    if damage is not None:
        raise ArtifactError(
            f"{damage} Delete it to train from the start, or choose another run_dir."
        ) from damage
    return None


def checksum_of_curves(checkpoint: Mapping[str, Any] | None) -> int | None:
    """That of `metrics.csv` when the checkpoint was made; None in one of an earlier version."""
    return None if checkpoint is None else checkpoint.get(_CURVES)


def forget_previous(run_dir: Path) -> None:
    """Remove the checkpoint before the last one: the run is finished."""
    _previous(checkpoint_file(run_dir)).unlink(missing_ok=True)


def _previous(last: Path) -> Path:
    return last.with_name("previous.ckpt")


def _read(file: Path) -> dict[str, Any]:
    require_content(file, ArtifactError)
    check_zip(file)
    try:
        content = torch.load(file, weights_only=True, mmap=True)
    except Exception as error:  # bytes that are no pickle can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{file} is damaged ({reason}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("global_step"), int):
        raise ArtifactError(f"{file} is no checkpoint of a run.")
    return content


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
                checkpoint[_CURVES] = logger.checksum

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
                os.replace(self.path, _previous(self.path))
            os.replace(temporary, self.path)

    def _refuse(self, error: OSError | RuntimeError, temporary: Path) -> NoReturn:
        """Leave nothing half written, and say what is needed, as far as an earlier one tells."""
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise error
        cause = error if isinstance(error, OSError) else OSError(errno.ENOSPC, "writing failed")
        cause.filename, cause.filename2 = str(self.path), None
        size = self.path.stat().st_size if self.path.exists() else None
        raise ArtifactError(refusal(cause, size)) from error
