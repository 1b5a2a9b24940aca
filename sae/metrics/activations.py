"""Strength of latents' firings, and the contexts they fire in, over a stream of batches."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from sae.errors import DegenerateInputError
from sae.functional import activation_moments

MIN_FIRINGS = 10
"""Moments are summarised over latents that fired more often than this."""

_ENTRIES_AT_ONCE = 2**22


class FeatureActivations(Metric):
    """Float64 sums of the powers of each latent's activations, and the contexts it fired in.

    Only what is not zero is read, so a sparse code costs little more than being looked through.

    Args:
        d_sae: Number of latents.

    Example:
        >>> metric = FeatureActivations(d_sae=2)
        >>> f = torch.tensor([[1.0, 0.0], [3.0, -2.0], [0.0, 0.0], [2.0, 0.0]])
        >>> metric.update(f, context=torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()["mean"].tolist(), metric.firings.tolist(), metric.contexts.tolist()
        ([1.5, -0.5], [3, 1], [2, 1])
    """

    full_state_update = False
    powers: Tensor
    firings: Tensor
    contexts: Tensor
    rows: Tensor

    def __init__(self, d_sae: int):
        super().__init__()
        zeros = torch.zeros(d_sae, dtype=torch.int64)
        self.add_state("powers", torch.zeros(d_sae, 4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("firings", zeros, dist_reduce_fx="sum")
        self.add_state("contexts", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self._last: tuple[int, Tensor] | None = None

    def update(
        self, f: Float[Tensor, "batch d_sae"], context: Int[Tensor, " batch"] | None = None
    ) -> None:
        """Add rows.

        Args:
            f: Feature activations, of any sign.
            context: Number of each row's context, ascending from batch to batch as well; None
                where there are none (`contexts` stays 0 then).
        """
        self.rows += len(f)
        size = max(1, _ENTRIES_AT_ONCE // f.shape[1])
        for start in range(0, len(f), size):
            part = f[start : start + size]
            row, latent = part.nonzero(as_tuple=True)
            value = part[row, latent].double()
            square = value.square()
            powers = torch.stack([value, square, square * value, square.square()], dim=-1)
            self.powers.index_add_(0, latent, powers)
            self.firings += torch.bincount(latent, minlength=f.shape[1])
            if context is not None:
                self._add_contexts(context[start : start + size], row, latent)

    def compute(self) -> dict[str, Tensor]:
        """`moments`, under the name that torchmetrics calls; it squeezes tensors of one entry."""
        return self.moments()

    def moments(self) -> dict[str, Float[Tensor, " d_sae"]]:
        """Moments of every latent: see `functional.activation_moments`.

        Raises:
            DegenerateInputError: If no row was seen.
        """
        if self.rows == 0:
            raise DegenerateInputError("FeatureActivations has seen no rows. Call update first.")
        return activation_moments(self.powers, int(self.rows.item()))

    def summary(self) -> dict[str, float]:
        """Medians over the latents that fired often enough, and their share; NaN without any."""
        often = self.firings > MIN_FIRINGS
        moments = {name: value[often].nanmedian().item() for name, value in self.moments().items()}
        shares = {"fired_over_10": often.double().mean().item()}
        return shares | {f"activation_{name}": value for name, value in moments.items()}

    def consistency(self) -> Float[Tensor, " d_sae"]:
        """Firings of each latent in a context where it fires at all; NaN for the silent.

        Source: sae-lens `consistent_activation_heuristic`, its prompts being our contexts.
        """
        return self.firings.double() / self.contexts

    def _add_contexts(self, context: Tensor, row: Tensor, latent: Tensor) -> None:
        first, last = int(context[0]), int(context[-1])
        fired = torch.zeros(
            last - first + 1, len(self.contexts), dtype=torch.bool, device=latent.device
        )
        fired[context.to(latent.device)[row] - first, latent] = True
        if self._last is not None and self._last[0] == first:  # it was counted already
            self.contexts -= self._last[1].long()
            fired[0] |= self._last[1]
        self.contexts += fired.sum(0)
        self._last = (last, fired[-1])
