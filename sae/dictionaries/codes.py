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


class Code(ABC):
    """Feature activations `f [batch d_sae]` in one of two layouts."""

    d_sae: int

    @property
    @abstractmethod
    def batch(self) -> int:
        """Number of encoded vectors."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """All feature activations, zeros included."""

    @abstractmethod
    def l0(self) -> Int[Tensor, " batch"]:
        """Number of latents with f != 0, per vector."""

    @abstractmethod
    def l1(self) -> Float[Tensor, " batch"]:
        """Sum of |f|, per vector, in float32."""

    @abstractmethod
    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """In how many vectors of the batch each latent fired."""


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

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """The activations themselves."""
        return self.values

    def l0(self) -> Int[Tensor, " batch"]:
        """Number of latents with f != 0, per vector."""
        return firing(self.values.detach())[0]

    def l1(self) -> Float[Tensor, " batch"]:
        """Sum of |f|, per vector, summed in float32 whatever the activations' dtype."""
        return self.values.sum(dim=1, dtype=torch.float32)  # none is negative

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """In how many vectors of the batch each latent fired."""
        return firing(self.values.detach())[1]


@dataclass(frozen=True)
class SparseCode(Code):
    """Only the selected latents, in compressed rows: row r owns `offsets[r]:offsets[r + 1]`.

    Latents that were selected but have the value 0 (TopK followed by ReLU) do not count as firing.

    Example:
        >>> code = SparseCode.from_topk(torch.tensor([[1, 2], [2, 0]]),
        ...                             torch.tensor([[2.0, 1.0], [3.0, 0.0]]), d_sae=3)
        >>> code.dense().tolist(), code.l0().tolist(), code.firing_counts().tolist()
        ([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]], [2, 1], [0, 1, 2])
    """

    offsets: Int[Tensor, " batch_plus_1"]
    indices: Int[Tensor, " nnz"]
    values: Float[Tensor, " nnz"]
    d_sae: int

    @classmethod
    def from_topk(
        cls, indices: Int[Tensor, "batch k"], values: Float[Tensor, "batch k"], d_sae: int
    ) -> "SparseCode":
        """Code of rows that select `k` latents each."""
        batch, k = indices.shape
        offsets = torch.arange(0, (batch + 1) * k, k, device=indices.device)[: batch + 1]
        return cls(offsets, indices.reshape(-1), values.reshape(-1), d_sae)

    @property
    def batch(self) -> int:
        """Number of encoded vectors."""
        return self.offsets.shape[0] - 1

    def _rows(self) -> Int[Tensor, " nnz"]:
        lengths = self.offsets.diff()
        rows = torch.arange(self.batch, device=self.offsets.device)
        return rows.repeat_interleave(lengths, output_size=self.indices.shape[0])

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """All feature activations, zeros included; gradients reach the selected values."""
        flat = self.values.new_zeros(self.batch * self.d_sae)
        return flat.scatter(0, self._rows() * self.d_sae + self.indices, self.values).view(
            self.batch, self.d_sae
        )

    def l0(self) -> Int[Tensor, " batch"]:
        """Number of latents with f != 0, per vector."""
        fired = (self.values.detach() != 0).long()
        return fired.new_zeros(self.batch).index_add_(0, self._rows(), fired)

    def l1(self) -> Float[Tensor, " batch"]:
        """Sum of |f|, per vector, summed in float32."""
        size = self.values.abs().float()
        return size.new_zeros(self.batch).index_add(0, self._rows(), size)

    def firing_counts(self) -> Int[Tensor, " d_sae"]:
        """In how many vectors of the batch each latent fired."""
        return torch.bincount(self.indices[self.values.detach() != 0], minlength=self.d_sae)
