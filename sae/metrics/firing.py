"""Firing rates of latents, over a stream of batches."""

import torch
from jaxtyping import Float64, Int
from torch import Tensor
from torchmetrics import Metric

from sae.errors import DegenerateInputError
from sae.functional import DENSE_FREQUENCY, RARE_FREQUENCY


class Firing(Metric):
    """Share of silent, rare and dense latents, and how often each fires.

    Silent means: fired on none of the `num_rows` vectors seen; say that number beside the share.
    Rare means: fired, but on less than `functional.RARE_FREQUENCY` of them; None where so few
    vectors were seen that a single firing is more.
    There are no bootstrap intervals: a resample can only have more silent latents than the data.

    Args:
        d_sae: Number of latents.

    Example:
        >>> metric = Firing(d_sae=4)
        >>> metric.update(torch.tensor([0, 1, 9, 100]), num_rows=100)
        >>> metric.compute()["silent"], metric.compute()["dense"]
        (0.25, 0.25)
    """

    full_state_update = False
    counts: Tensor
    rows: Tensor

    def __init__(self, d_sae: int):
        super().__init__()
        self.add_state("counts", torch.zeros(d_sae, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: Int[Tensor, " d_sae"], num_rows: int) -> None:
        """Add `num_rows` rows: `counts` holds the number of them on which each latent fired."""
        self.counts += counts.to(self.counts)
        self.rows += num_rows

    @property
    def frequencies(self) -> Float64[Tensor, " d_sae"]:
        """Share of the rows on which each latent fires.

        Not part of `compute`, whose tensors of one entry lose their axis in torchmetrics.
        """
        return self.counts.double() / self.rows

    def compute(self) -> dict[str, float | None]:
        """`silent`, `rare` and `dense` shares, and `num_rows`.

        Raises:
            DegenerateInputError: If no row was seen.
        """
        if self.rows == 0:
            raise DegenerateInputError("Firing has seen no rows. Call update first.")
        frequencies = self.frequencies
        rare = (frequencies > 0) & (frequencies < RARE_FREQUENCY)
        return {
            "silent": (frequencies == 0).double().mean().item(),
            "rare": rare.double().mean().item() if self.rows * RARE_FREQUENCY > 1 else None,
            "dense": (frequencies > DENSE_FREQUENCY).double().mean().item(),
            "num_rows": int(self.rows.item()),
        }

    def shares_over(self, threshold: float) -> tuple[float, float | None]:
        """Share of the latents that fire on more than `threshold` of the rows, and of the firings.

        Source: SAEBench `freq_over_…_percent` and `normalized_freq_over_…_percent`.
        """
        frequencies = self.frequencies
        over = frequencies > threshold
        fired = frequencies.sum()
        of_firings = (frequencies[over].sum() / fired).item() if fired > 0 else None
        return over.double().mean().item(), of_firings
