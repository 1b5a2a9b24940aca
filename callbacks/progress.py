"""Progress of training: steps, vectors/s, time left and the latest FVU, L0 and dead share."""

import logging
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sae.progress import Estimate, duration
from sae.sharing import sharing

log = logging.getLogger(__name__)


class TrainingProgress(ProgressBar):
    """A bar on a terminal; elsewhere (a log file, a cluster job) a line every `log_seconds`.

    Lightning drops its own bar when it finds this one among the callbacks. SAEs that train in
    lockstep draw one bar with a row each.

    Args:
        log_seconds: Time between two lines where the output is no terminal.
        console: Console to draw on; default: stderr.
    """

    def __init__(self, log_seconds: float = 30.0, console: Console | None = None) -> None:
        super().__init__()
        self.log_seconds = log_seconds
        self.console = console or Console(stderr=True)
        self._enabled = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._vectors = self._first_step = self._steps = 0
        self._start = self._shown = self._paused = 0.0
        self._validating_since = 0.0
        self._estimate = Estimate(0)

    def disable(self) -> None:
        """Hide the progress (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the progress again."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the bar."""
        super().on_train_start(trainer, pl_module)
        self._steps = int(trainer.estimated_stepping_batches)
        self._first_step, self._vectors, self._paused = trainer.global_step, 0, 0.0
        self._start = self._shown = time.monotonic()
        self._estimate = Estimate(self._steps)
        if self._enabled and self.console.is_terminal:
            self._bar = bar = sharing().once("training bar", self._new_bar)
            bar.start()
            self._task = bar.add_task(
                self._description("train"), total=self._steps, completed=self._first_step,
                state="steps", going=True,
            )  # fmt: skip

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance the bar; the numbers are read twice a second at most."""
        self._vectors += len(batch) * trainer.world_size
        now = time.monotonic()
        whole = self._estimate.after(trainer.global_step)
        if whole and self._enabled:
            steps = f"{self._steps:,}"
            log.info("train: %s steps, about %s at this pace", steps, duration(whole))
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)
            if now - self._shown > 0.5:
                self._shown = now
                self._bar.update(self._task, state=f"steps, {self._state(trainer)}")
        elif self._enabled and now - self._shown >= self.log_seconds:
            self._shown = now
            left = (self._steps - trainer.global_step) * self._seconds_per_step(trainer)
            log.info("%s, %.0f s left", self._line(trainer), left)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show that a validation runs; its time does not count into the rate."""
        self._validating_since = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, description=self._description("validate"))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the training again."""
        self._paused += time.monotonic() - self._validating_since
        if self._bar is not None:
            self._bar.update(self._task, description=self._description("train"))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the finished bar on the screen, or write one last line."""
        if self._bar is None and self._enabled:
            log.info("%s", self._line(trainer))
        elif self._bar is not None:
            self._bar.update(self._task, state=f"steps, {self._state(trainer)}")
        self._stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, going=False)
            if not any(task.fields["going"] for task in self._bar.tasks):
                self._bar.stop()
            self._bar = None

    def _new_bar(self) -> Progress:
        return Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
            MofNCompleteColumn(), TextColumn("{task.fields[state]}", style="cyan"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self.console,
        )  # fmt: skip

    def _description(self, doing: str) -> str:
        return " ".join(filter(None, (sharing().name, doing)))

    def _line(self, trainer: L.Trainer) -> str:
        return f"train: step {trainer.global_step:,} of {self._steps:,}, {self._state(trainer)}"

    def _state(self, trainer: L.Trainer) -> str:
        rate = self._vectors / self._seconds()
        return ", ".join([f"{rate:,.0f} vectors/s", *_latest(trainer.callback_metrics)])

    def _seconds(self) -> float:
        return max(time.monotonic() - self._start - self._paused, 1e-9)

    def _seconds_per_step(self, trainer: L.Trainer) -> float:
        elapsed = time.monotonic() - self._start  # validation included: it will happen again
        return elapsed / max(trainer.global_step - self._first_step, 1)


def _latest(metrics: Mapping[str, Any]) -> list[str]:
    """The three numbers that tell how training goes, where they are known.

    Example:
        >>> _latest({"train/fvu": 0.1234, "val/l0": 95.2, "train/dead": 0.004})
        ['fvu 0.123', 'l0 95', 'dead 0.4 %']
    """
    shown = []
    for name, template, factor in (
        ("fvu", "{:.3f}", 1),
        ("l0", "{:.0f}", 1),
        ("dead", "{:.1f} %", 100),
    ):
        for key in (f"train/{name}", f"val/{name}"):
            if key in metrics:
                shown.append(f"{name} " + template.format(factor * float(metrics[key])))
                break
    return shown
