"""Writes `last.ckpt` so that a run killed at any moment resumes bit-identically."""

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Saves every `every_steps` steps and at the end, atomically.

    The checkpoint of step n is written when step n + 1 begins: whatever Lightning, the module and
    the other callbacks do after a step (logging, validation) is complete then, so that a resumed
    run neither leaves it out nor does it twice.

    Args:
        path: File to write, for example `run/checkpoints/last.ckpt`.
        every_steps: Optimiser steps between two checkpoints.
    """

    def __init__(self, path: Path, every_steps: int) -> None:
        self.path, self.every_steps = Path(path), every_steps
        self._last_saved = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the step that the run starts or continues at."""
        self._last_saved = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save if one is due."""
        if trainer.global_step // self.every_steps > self._last_saved // self.every_steps:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the finished run."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        self._last_saved = trainer.global_step
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        trainer.save_checkpoint(temporary)  # every rank must call it
        if trainer.is_global_zero:
            os.replace(temporary, self.path)
