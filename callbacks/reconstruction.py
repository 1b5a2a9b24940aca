"""Callback that logs how well the SAE reconstructs the validation split."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from callbacks.outputs import field, log_values
from sae import metrics


class Reconstruction(L.Callback):
    """Log `val/fvu`, `val/mse`, `val/cosine`, `val/relative_bias`, `val/l0` of the whole split.

    Sums over all rows in float64, in the LM's own units: no means of batch ratios. The
    validation step must return `x`, `x_hat` and `code`.

    Args:
        mean: Gives the mean row of the validation split, in the LM's own units; where an SAE writes
            elsewhere than it reads, what it reads stands before what it writes. With it
            `val/fvu_median` is logged as well.
    """

    names = ("fvu", "mse", "cosine", "relative_bias", "l0")

    def __init__(self, mean: Callable[[], Float[Tensor, " width"]] | None = None) -> None:
        self._mean = mean
        self._metric: metrics.Reconstruction | None = None
        self._robust: metrics.RobustReconstruction | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start over."""
        self._metric = self._robust = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch to the sums."""
        x, x_hat = field(outputs, "x"), field(outputs, "x_hat")
        metric = self._metric = self._metric or metrics.Reconstruction(x.shape[-1]).to(x.device)
        metric.update(x, x_hat, field(outputs, "code").l0())
        if self._mean is not None:
            if self._robust is None:
                mean = self._mean()[-x.shape[-1] :]
                self._robust = metrics.RobustReconstruction(mean, num_groups=1).to(x.device)
            every = x.new_ones(len(x), dtype=torch.bool)
            self._robust.update(x, x_hat, counted=every, short=every)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log."""
        if self._metric is not None and not trainer.sanity_checking:
            values = self._metric.compute()
            logged = {f"val/{name}": values[name] for name in self.names}
            if self._robust is not None:
                logged["val/fvu_median"] = self._robust.compute()["fvu_median"]
            log_values(pl_module, logged)
