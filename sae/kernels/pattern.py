"""The (row, latent) pairs of a batch: which latents each row selects."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class ByLatent(NamedTuple):
    """The pairs of a pattern sorted by latent: latent j owns `offsets[j]:offsets[j + 1]`."""

    offsets: Int[Tensor, " d_sae_plus_1"]
    rows: Int[Tensor, " pairs"]
    order: Int[Tensor, " pairs"]


@dataclass(frozen=True)
class Pattern:
    """Latents that each row selects: row r owns `latents[offsets[r]:offsets[r + 1]]`.

    Attributes:
        offsets: Start of each row's pairs, and their number at the end.
        latents: Selected latents, rising within a row.
        d_sae: Number of latents.
    """

    offsets: Int[Tensor, " batch_plus_1"]
    latents: Int[Tensor, " pairs"]
    d_sae: int

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.offsets.shape[0] - 1

    def part(self, start: int, end: int) -> tuple["Pattern", slice]:
        """The pattern of some rows, and where their pairs lie."""
        offsets = self.offsets[start : end + 1]
        pairs = slice(int(offsets[0]), int(offsets[-1]))
        return Pattern(offsets - offsets[0], self.latents[pairs], self.d_sae), pairs

    @cached_property
    def rows(self) -> Int[Tensor, " pairs"]:
        """Row of each pair."""
        rows = torch.arange(self.batch, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self.latents.shape[0])

    def only(self, kept: Bool[Tensor, " pairs"]) -> "Pattern":
        """The pattern of some of the pairs.

        Example:
            >>> from sae.kernels import select_positive
            >>> pattern = select_positive(torch.tensor([[0.5, 1.0, 2.0], [0.0, -3.0, 1.0]]))
            >>> some = pattern.only(pattern.latents < 2)
            >>> some.offsets.tolist(), some.latents.tolist()
            ([0, 2, 2], [0, 1])
        """
        counts = kept.new_zeros(self.batch, dtype=torch.long)
        counts.index_add_(0, self.rows, kept.long())
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(self.offsets.dtype)
        return Pattern(offsets, self.latents[kept], self.d_sae)

    def by_latent(self, transpose: Callable[["Pattern"], ByLatent]) -> ByLatent:
        """The pairs sorted by latent, for the weight gradients; `transpose` sorts them once."""
        if "_by_latent" not in self.__dict__:
            self.__dict__["_by_latent"] = transpose(self)
        return self.__dict__["_by_latent"]
