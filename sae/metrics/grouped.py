"""Base of all streaming metrics: float64 sums by group of documents, totals and intervals."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from sae.errors import DegenerateInputError
from sae.metrics.bootstrap import Interval, bootstrap_intervals


class GroupedSums(Metric):
    """Float64 sums of per-row terms, kept apart by document, and the metrics made of them.

    Document `i` goes to group `i % num_groups`: the state has a fixed size, whatever the number
    of documents, and states of several processes add up. Groups of several documents are
    independent as well, so intervals stay right.

    Args:
        widths: Names of the sums; a number where a row adds a vector, None where a scalar.
        num_groups: Upper limit to the number of resampled units.
    """

    full_state_update = False
    count: ClassVar[str]
    """Name of the sum that counts rows."""

    def __init__(self, widths: Mapping[str, int | None], num_groups: int = 1024):
        super().__init__()
        self.widths = dict(widths)
        self.num_groups = num_groups
        for name, width in self.widths.items():
            shape = (num_groups,) if width is None else (num_groups, width)
            zeros = torch.zeros(shape, dtype=torch.float64)
            self.add_state(f"sum_{name}", zeros, dist_reduce_fx="sum")

    @abstractmethod
    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Metrics computed from summed terms, for any leading axes; NaN where undefined."""

    def add(
        self,
        terms: Mapping[str, Float[Tensor, "batch ..."]],
        document: Int[Tensor, " batch"] | None,
    ) -> None:
        """Add the terms of each row to the sums of its document's group (None: all to one)."""
        for name, term in terms.items():
            sums = self._sum(name)
            term = term.to(sums)
            if document is None:
                sums[0] += term.sum(0)
            else:
                sums.index_add_(0, document.to(sums.device) % self.num_groups, term)

    def compute(self) -> dict[str, float | None]:
        """Metrics of all rows seen; None where one is undefined.

        Raises:
            DegenerateInputError: If no row was seen.
        """
        total = {name: self._sum(name).sum(0) for name in self.widths}
        if total[self.count] == 0:
            raise DegenerateInputError(
                f"{type(self).__name__} has seen no {self.count}. Call update first."
            )
        values = {name: value.item() for name, value in self.metrics(total).items()}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def intervals(
        self, num_resamples: int = 1000, seed: int = 0, level: float = 0.95
    ) -> dict[str, Interval | None]:
        """Bootstrap intervals over documents; None where there is one group only."""
        with self.sync_context():
            filled = self._sum(self.count) > 0
            sums = {name: self._sum(name)[filled] for name in self.widths}
        return bootstrap_intervals(
            self.metrics, sums, num_resamples=num_resamples, seed=seed, level=level
        )

    def num_rows(self) -> int:
        """Number of rows seen so far, by all processes."""
        with self.sync_context():
            return int(self._sum(self.count).sum().item())

    def num_units(self) -> int:
        """Number of independent units (documents, or groups of them) that intervals resample."""
        with self.sync_context():
            return int((self._sum(self.count) > 0).sum().item())

    def _sum(self, name: str) -> Tensor:
        return getattr(self, f"sum_{name}")

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> torch.nn.Module:
        # `.to(torch.bfloat16)`, which Lightning calls for precision=bf16-true, would lower the
        # sums too (torchmetrics guards `.bfloat16()` only): let moves between devices through.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), exclude_state)
