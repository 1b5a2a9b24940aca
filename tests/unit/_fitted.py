"""A tiny Lightning run with what callbacks read, and a logger that remembers."""

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from callbacks.progress import TrainingProgress
from sae.dictionaries.codes import DenseCode

ROWS, D = 48, 6
X = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0)) + 0.5


class Module(L.LightningModule):
    """A Lightning module with just what the callbacks read."""

    dead_after_tokens = 20

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(D))
        self.register_buffer("tokens_since_fired", torch.tensor([0, 19, 20, 500]))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long))

    def training_step(self, x, batch_idx):
        self.tokens_seen += len(x)
        self.log_dict({"train/loss": 0.5, "tokens": self.tokens_seen.double()})
        return (self.weight * x).square().mean()

    def validation_step(self, x, batch_idx):
        x_hat = x * self.weight.detach() * 0.9
        f = torch.zeros(len(x), 4)
        f[:, 1] = 1.0  # fires always
        if batch_idx == 0:
            f[0, 2] = 1.0  # fires on one vector of all
        return {"x": x, "x_hat": x_hat, "code": DenseCode(f)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Recorder(Logger):
    name = version = ""

    def __init__(self):
        super().__init__()
        self.logged, self.histograms = {}, []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged.update({(step, key): value for key, value in metrics.items()})

    def log_firing_histogram(self, histogram, step):
        self.histograms.append((step, histogram))


def fit(callbacks, loggers, steps=6, module=None, **kwargs):
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=loggers, callbacks=callbacks,
        enable_checkpointing=False, enable_model_summary=False, val_check_interval=3,
        check_val_every_n_epoch=None, log_every_n_steps=2,
        enable_progress_bar=any(isinstance(c, TrainingProgress) for c in callbacks), **kwargs,
    )  # fmt: skip
    loader = DataLoader(X, batch_size=8)  # pyright: ignore[reportArgumentType]
    trainer.fit(module or Module(), loader, DataLoader(X, batch_size=7))  # pyright: ignore
    return trainer
