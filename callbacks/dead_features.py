"""Rates of latents: dead ones in training, silent and dense ones on the validation split."""

from typing import Any, Protocol, cast, runtime_checkable

import lightning as L

from callbacks.outputs import field, log_values
from sae.functional import firing_histogram
from sae.metrics import Firing


@runtime_checkable
class HistogramLogger(Protocol):
    """A Lightning logger that can draw the firing histogram."""

    def log_firing_histogram(self, histogram: dict[str, Any], step: int) -> None:
        """Draw what `sae.functional.firing_histogram` returns."""
        ...


class DeadFeatures(L.Callback):
    """Log `train/dead`, `val/silent`, `val/dense`; hand the firing histogram to the loggers.

    `train/dead` is the share of latents that fired on none of the last `dead_after_tokens`
    tokens; it is logged for modules that count (`tokens_since_fired`, `dead_after_tokens`).
    Silent and dense come from the `code` that the validation step returns: silent means on no
    vector of the validation split, dense on more than 10 %.

    Attributes:
        histogram: Firing histogram of the last validation (`sae.functional.firing_histogram`).
    """

    def __init__(self) -> None:
        self.histogram: dict[str, Any] | None = None
        self._firing: Firing | None = None

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log the dead share, on the steps that are logged."""
        every = cast(int, getattr(trainer, "log_every_n_steps", 1))
        if trainer.global_step % max(every, 1):
            return
        since = getattr(pl_module, "tokens_since_fired", None)
        if since is not None:
            dead = since >= cast(int, pl_module.dead_after_tokens)
            pl_module.log("train/dead", dead.double().mean())

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start over."""
        self._firing = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the latents that fire."""
        code = field(outputs, "code")
        counts = code.firing_counts()
        firing = self._firing = self._firing or Firing(code.d_sae).to(counts.device)
        firing.update(counts, code.batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the shares, and draw the histogram with loggers that can."""
        if self._firing is None or trainer.sanity_checking:
            return
        values: dict[str, Any] = self._firing.compute()
        log_values(pl_module, {f"val/{name}": values[name] for name in ("silent", "dense")})
        self.histogram = firing_histogram(self._firing.frequencies)
        for logger in trainer.loggers:
            if isinstance(logger, HistogramLogger):
                logger.log_firing_histogram(self.histogram, trainer.global_step)
