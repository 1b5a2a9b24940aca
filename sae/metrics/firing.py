"""How often latents fire, over a stream of batches."""

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric

from sae.errors import DegenerateInputError
from sae.functional import DENSE_FREQUENCY


class Firing(Metric):
    """Share of silent and of dense latents, and how often each fires.

    Silent means: fired on none of the `num_rows` vectors seen; say that number beside the share.
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
        """Add, for each latent, the number of rows on which it fired, of `num_rows`."""
        self.counts += counts.to(self.counts)
        self.rows += num_rows

    def compute(self) -> dict[str, float | Tensor]:
        """`silent` and `dense` shares, `frequencies` [d_sae] in float64, `num_rows`.

        Raises:
            DegenerateInputError: If no row was seen.
        """
        if self.rows == 0:
            raise DegenerateInputError("Firing has seen no rows. Call update first.")
        frequencies = self.counts.double() / self.rows
        return {
            "silent": (frequencies == 0).double().mean().item(),
            "dense": (frequencies > DENSE_FREQUENCY).double().mean().item(),
            "frequencies": frequencies,
            "num_rows": int(self.rows.item()),
        }
