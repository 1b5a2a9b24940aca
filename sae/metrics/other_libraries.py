"""Metrics that other libraries call by the same names: for comparison with their numbers only.

Several depend on the batch; a batch here is what `update` gets. Means over batches are weighted by
rows, which changes nothing for the equal batches of those libraries.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from sae.errors import DegenerateInputError

_BY_ROW = (
    "ev_saebench_legacy", "mse_sae_lens", "mse_saebench", "nmse_openai", "l0_positive",
    "l1_saebench", "ev_dictionary_learning",
)  # fmt: skip
OTHER_DEFINITIONS = (*_BY_ROW, "ev_saebench_0_6", "alive_dictionary_learning")
"""All names, described at `OtherDefinitions`."""


class OtherDefinitions(Metric):
    r"""Explained variance (EV), MSE, L0 and L1 as other libraries define or once defined them.

    With $e = x - \hat x$, $\bar x$ the mean of a batch, $n$ its rows:

    - `ev_saebench_legacy`: mean over rows of $1 - \|e\|^2 / \|x - \bar x\|^2$. SAEBench's paper;
      sae-lens `explained_variance_legacy`. Rows near the mean decide it.
    - `ev_saebench_0_6`: $1 - E\|e\|^2 / (E\|x\|^2 - (\mathrm{mean}_j E[x_j^2])^2)$. SAEBench 0.6.0
      `core`: the second term should be $\sum_j E[x_j]^2$, so variance is taken about almost zero,
      and the value depends on the unit of x.
    - `ev_dictionary_learning`: mean over batches of
      $1 - \sum_j \mathrm{Var}(e_j) / \sum_j \mathrm{Var}(x_j)$. dictionary_learning
      `frac_variance_explained`. A constant offset is free.
    - `mse_sae_lens`: mean over rows of $\|e\|^2$ (summed over d_in). sae-lens today.
    - `mse_saebench`: mean over rows of $\|e\|^2 / n$. SAEBench, sae-lens before its PR 711.
      Depends on the size of a batch.
    - `nmse_openai`: mean over rows of $\|e\|^2 / \|x\|^2$. OpenAI `normalized_mean_squared_error`.
    - `l0_positive`: mean number of latents with f > 0. Older sae-lens and dictionary_learning;
      differs for signed codes.
    - `l1_saebench`: mean over rows of the plain sum of f. SAEBench: signs cancel.
    - `alive_dictionary_learning`: share of latents whose summed f is not 0. dictionary_learning
      `frac_alive`: signs can cancel.

    Args:
        d_sae: Number of latents.
        names: Metrics to compute, out of `OTHER_DEFINITIONS`.
    """

    full_state_update = False
    sums: Tensor
    energy: Tensor
    latents: Tensor
    rows: Tensor

    def __init__(self, d_sae: int, names: Sequence[str] = OTHER_DEFINITIONS):
        super().__init__()
        self.names = names
        for name, size in (("sums", len(_BY_ROW)), ("energy", 3), ("latents", d_sae)):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        x: Float[Tensor, "batch d_in"],
        x_hat: Float[Tensor, "batch d_in"],
        f: Float[Tensor, "batch d_sae"],
    ) -> None:
        """Add a batch."""
        x, x_hat = x.double(), x_hat.double()
        error, square_norm = (x - x_hat).square().sum(-1), x.square().sum(-1)
        around = (x - x.mean(0)).square().sum(-1)
        variances = (
            ((x - x_hat).var(0).sum() / x.var(0).sum()) if len(x) > 1 else error.new_ones(())
        )
        self.sums += torch.stack([
            (1 - error / around).sum(),
            error.sum(),
            error.sum() / len(x),
            (error / square_norm).sum(),
            (f > 0).sum().double(),
            f.sum(dtype=torch.float64),
            (1 - variances) * len(x),
        ])  # fmt: skip
        mean_square = x.square().mean(0).mean()
        self.energy += torch.stack([error.sum(), square_norm.sum(), mean_square * len(x)])
        self.latents += f.sum(0, dtype=torch.float64)
        self.rows += len(x)

    def compute(self) -> dict[str, float | None]:
        """The metrics that were asked for, of all rows seen; None where one is undefined.

        Raises:
            DegenerateInputError: If no row was seen.
        """
        if self.rows == 0:
            raise DegenerateInputError("OtherDefinitions has seen no rows. Call update first.")
        error, square_norm, mean_square = (self.energy / self.rows).tolist()
        means: list[float] = (self.sums / self.rows).tolist()
        values: dict[str, float] = dict(zip(_BY_ROW, means, strict=True))
        variance = square_norm - mean_square**2
        values["ev_saebench_0_6"] = 1 - error / variance if variance else math.nan
        values["alive_dictionary_learning"] = (self.latents != 0).double().mean().item()
        return {
            name: value if math.isfinite(value) else None
            for name, value in values.items()
            if name in self.names
        }
