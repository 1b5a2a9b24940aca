"""The code of a batch: which latents fire and how strongly, dense or sparse.

Architectures hand a `Code` to the loss, the metrics and the counters, which therefore never need
a dense [batch d_sae] tensor when the architecture knows its active latents (TopK).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.functional import firing
from sae.kernels import Pattern, atoms_sum, row_sums


class Code(ABC):
    """Feature activations `f [batch d_sae]` in one of two layouts."""

    d_sae: int
    values: Tensor
    """Activations in the layout's own order; a code with other values keeps the layout."""

    @property
    @abstractmethod
    def batch(self) -> int:
        """Number of encoded vectors."""

    @abstractmethod
    def with_values(self, values: Tensor) -> "Code":
        """The same layout with other values."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """All feature activations, zeros included."""

    @abstractmethod
    def atoms_sum(self, W: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """Sum over the latents of f times the latent's row of W."""

    @abstractmethod
    def l0(self) -> Int[Tensor, " batch"]:
        """Number of latents with f != 0, per vector."""

    def l1(self) -> Float[Tensor, " batch"]:
        """Sum of |f|, per vector, in float32."""
        return self.with_values(self.values.abs()).sums()

    @abstractmethod
    def sums(self) -> Float[Tensor, " batch"]:
        """Sum of the values, per vector, in float32 (or float64)."""

    @abstractmethod
    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """Number of vectors of the batch in which each latent fired."""

    @abstractmethod
    def of(self, latents: Int[Tensor, " n"]) -> Float[Tensor, "batch n"]:
        """Activations of a few latents, zeros included."""


@dataclass(frozen=True)
class DenseCode(Code):
    """All activations of a batch, zeros included; none may be negative.

    Example:
        >>> code = DenseCode(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]))
        >>> code.l0().tolist(), code.l1().tolist(), code.firing_counts().tolist()
        ([2, 1], [3.0, 3.0], [0, 1, 2])
    """

    values: Float[Tensor, "batch d_sae"]

    @property
    def d_sae(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of latents."""
        return self.values.shape[1]

    @property
    def batch(self) -> int:
        """Number of encoded vectors."""
        return self.values.shape[0]

    def with_values(self, values: Tensor) -> "DenseCode":
        """Another dense code."""
        return DenseCode(values)

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """All feature activations, as they are stored."""
        return self.values

    def atoms_sum(self, W: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """`f @ W`."""
        return self.values @ W

    def l0(self) -> Int[Tensor, " batch"]:
        """Number of latents with f != 0, per vector."""
        return firing(self.values.detach())[0]

    def l1(self) -> Float[Tensor, " batch"]:
        """Sum of |f|, per vector."""
        return self.sums()  # none is negative

    def sums(self) -> Float[Tensor, " batch"]:
        """Sum of the values, per vector, summed in float32 whatever the activations' dtype."""
        return self.values.sum(dim=1, dtype=_at_least_float32(self.values))

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """Number of vectors of the batch in which each latent fired."""
        return firing(self.values.detach())[1]

    def of(self, latents: Int[Tensor, " n"]) -> Float[Tensor, "batch n"]:
        """Columns of some latents."""
        return self.values[:, latents]


@dataclass(frozen=True)
class SparseCode(Code):
    """Only the selected latents: a pattern and one value for each of its pairs.

    Latents that were selected but have the value 0 (ReLU of a selected negative) do not fire.

    Example:
        >>> from sae.kernels import select_topk
        >>> pattern = select_topk(torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]]), k=2)
        >>> code = SparseCode(pattern, torch.tensor([2.0, 1.0, 3.0]))
        >>> code.dense().tolist(), code.l0().tolist(), code.firing_counts().tolist()
        ([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]], [2, 1], [0, 1, 2])
    """

    pattern: Pattern
    values: Float[Tensor, " pairs"]

    @property
    def d_sae(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of latents."""
        return self.pattern.d_sae

    @property
    def batch(self) -> int:
        """Number of encoded vectors."""
        return self.pattern.batch

    def with_values(self, values: Tensor) -> "SparseCode":
        """Other values on the same pattern."""
        return SparseCode(self.pattern, values)

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """All feature activations, zeros included; gradients reach the selected values."""
        flat = self.values.new_zeros(self.batch * self.d_sae)
        places = self.pattern.rows * self.d_sae + self.pattern.latents
        return flat.scatter(0, places, self.values).view(self.batch, self.d_sae)

    def atoms_sum(self, W: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """Sum of the firing atoms, reading no others."""
        return atoms_sum(self.values, W, self.pattern)

    def l0(self) -> Int[Tensor, " batch"]:
        """Number of latents with f != 0, per vector."""
        fired = (self.values.detach() != 0).long()
        return fired.new_zeros(self.batch).index_add_(0, self.pattern.rows, fired)

    def sums(self) -> Float[Tensor, " batch"]:
        """Sum of the values, per vector, summed in float32."""
        return row_sums(self.values.to(_at_least_float32(self.values)), self.pattern)

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """Number of vectors of the batch in which each latent fired."""
        fired = (self.values.detach() != 0).long()
        return fired.new_zeros(self.d_sae).index_add_(0, self.pattern.latents, fired)

    def of(self, latents: Int[Tensor, " n"]) -> Float[Tensor, "batch n"]:
        """Activations of some latents, zeros included, from the pairs that hold them."""
        column = latents.new_full((self.d_sae,), -1)
        column[latents] = torch.arange(len(latents), device=latents.device)
        column = column[self.pattern.latents]
        here = column >= 0
        found = self.values.new_zeros(self.batch, len(latents))
        found[self.pattern.rows[here], column[here]] = self.values[here]
        return found


def _at_least_float32(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
