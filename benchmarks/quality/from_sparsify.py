"""sparsify: its `Trainer.fit` on a stand-in for an LM whose one module says the vectors."""

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import find
from benchmarks.quality.contender import Contender, Fitted, Setting, share
from benchmarks.quality.data import Data

LR = {"signum": 5e-3, "adam": 2e-4}
SITE = "site"


def contenders() -> list[Contender]:
    """TopK with each of two optimisers; signum is its default."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels are for GPUs
    if find("sparsify") is None:
        return []
    return [
        Contender(f"topk, {name}", "sparsify", "topk", "k", partial(_lr, name), 0,
                  partial(_fit, name))
        for name in LR
    ]  # fmt: skip


def _lr(optimizer: str, d_sae: int) -> float:
    return LR[optimizer] / (d_sae / 2**14) ** 0.5


class Vectors(nn.Module):
    """An LM as far as its trainer looks: every call makes the module `site` say the next batch.

    Args:
        batches: Scaled training batches.
        d_in: Their width.
        batch: Rows in each.
    """

    device = torch.device("cpu")

    def __init__(self, batches: Iterator[Tensor], d_in: int, batch: int) -> None:
        super().__init__()
        self.site = nn.Identity()
        self._batches, self._d_in = batches, d_in
        self.dummy_inputs = {"x": torch.zeros(1, batch, dtype=torch.long)}
        self._asked = False

    @property
    def base_model(self) -> "Vectors":
        """Itself."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """The next batch as the only sequence; the first call only asks for the width."""
        if not self._asked:
            self._asked = True
            return self.site(torch.zeros(*x.shape, self._d_in))
        return self.site(next(self._batches)[None])


def _fit(optimizer: str, data: Data, d_sae: int, setting: Setting) -> Fitted:
    sparsify: Any = find("sparsify")
    tokens = {"input_ids": torch.zeros(data.size.batch, dtype=torch.long)}
    with tempfile.TemporaryDirectory() as folder:
        config = sparsify.TrainConfig(
            sparsify.SparseCoderConfig(num_latents=d_sae, k=round(setting.value)),
            batch_size=1,
            optimizer=optimizer,
            lr=setting.lr,
            lr_warmup_steps=share(data.steps, 0.05, 1000),
            hookpoints=[SITE],
            init_seeds=[setting.seed],
            save_every=10**9,
            save_dir=folder,
            run_name="run",
            log_to_wandb=False,
        )
        lm = Vectors(data.batches(), data.d_in, data.size.batch)
        sparsify.Trainer(config, [tokens] * data.steps, lm).fit()
        found = sparsify.SparseCoder.load_from_disk(Path(folder) / "run" / SITE)

    def encode(x: Tensor) -> Tensor:
        values, indices, pre = found.encode(x)
        return torch.zeros_like(pre).scatter(1, indices, values.to(pre.dtype))

    def decode(code: Tensor) -> Tensor:
        return code @ found.W_dec + found.b_dec

    return Fitted(encode, decode, found.W_dec.detach(), factor=data.scale)
