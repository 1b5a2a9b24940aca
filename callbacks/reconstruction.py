"""How well the validation split is reconstructed."""

from typing import Any

import lightning as L

from callbacks.outputs import field, log_values
from sae import metrics


class Reconstruction(L.Callback):
    """Log `val/fvu`, `val/mse`, `val/cosine`, `val/relative_bias`, `val/l0` of the whole split.

    Sums over all rows in float64, in the LM's own units: no means of batch ratios. The
    validation step must return `x`, `x_hat` and `code`.
    """

    names = ("fvu", "mse", "cosine", "relative_bias", "l0")

    def __init__(self) -> None:
        self._metric: metrics.Reconstruction | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start over."""
        self._metric = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        x, x_hat = field(outputs, "x"), field(outputs, "x_hat")
        metric = self._metric = self._metric or metrics.Reconstruction(x.shape[-1]).to(x.device)
        metric.update(x, x_hat, field(outputs, "code").l0())

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log."""
        if self._metric is not None and not trainer.sanity_checking:
            values = self._metric.compute()
            log_values(pl_module, {f"val/{name}": values[name] for name in self.names})
