"""The paper's dictionary: one matrix that both detects and writes (arXiv 2309.08600, eq. 1-4)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae.dictionaries.base import (
    Dictionary,
    LatentParameter,
    Tensors,
    check_coefficient,
    matmul_dtype,
    register,
)
from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.untied import GRADIENT_NORM, START_BIAS
from sae.errors import ConfigError
from sae.kernels import tied_code, unit_rows

REVIVED_RESPONSE = 0.2
"""Share of its projection with which a revived latent answers the input it was drawn for."""


@register("tied")
class Tied(Dictionary):
    r"""Tied sparse autoencoder: $f = ReLU(M (x - c) + b)$, $\hat x = M^T f + c$, unit rows of M.

    Loss: mean over d_in of $(x - \hat x)^2$ plus `l1` times the sum of f, averaged over the batch
    (the authors' own form of eq. 4). As in their code the rows are normalised inside the forward
    pass and the gradient flows through the normalisation; M starts Xavier-uniform, b at
    `start_bias` (theirs: 0), there is no decoder bias. `centre="mean"` subtracts the fixed mean c
    of the training split before and adds it after (their optional centring); `"none"` is the paper.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        l1: Coefficient of the penalty, at least 0.
        centre: `"none"` or `"mean"`.
        start_bias: b at the start; the authors': 0.
        mean: Scaled mean of the training split, needed for `centre="mean"`.
        generator: Source of the initial weights.
    """

    options = frozenset({"l1", "centre", "start_bias"})
    coefficient = "l1"
    gradient_norm = GRADIENT_NORM

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l1: float,
        centre: Literal["none", "mean"] = "none",
        start_bias: float = START_BIAS,
        mean: Float[Tensor, " d_in"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae)
        self.l1 = check_coefficient("l1", l1)
        if centre not in ("none", "mean"):
            raise ConfigError(f"sae.centre={centre!r} must be 'none' or 'mean'.")
        if centre == "mean" and mean is None:
            raise ConfigError("sae.centre=mean needs the mean of the training activations.")
        self.centred = centre == "mean"
        self.W = nn.Parameter(
            nn.init.xavier_uniform_(torch.empty(d_sae, d_in), generator=generator)
        )
        self.b_enc = nn.Parameter(torch.full((d_sae,), float(start_bias)))
        start = mean if self.centred and mean is not None else torch.zeros(d_in)
        self.register_buffer("centre", start.detach().clone().float())
        self.centre: Tensor

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """ReLU code of the centred input."""
        return self._relu_code(self._centred(x), unit_rows(self.W), self.b_enc)

    def decode_code(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Sum of the firing atoms, plus the centre."""
        return self._uncentred(code.atoms_sum(unit_rows(self.W)))

    def _encode_decode(self, x: Tensor) -> tuple[Code, Tensor]:
        x, W = self._centred(x), unit_rows(self.W)
        W_fast = matmul_dtype(W)
        found = self._few_or_dense(x, W_fast, self.b_enc)
        if isinstance(found, Tensor):
            code: Code = DenseCode(torch.relu(found))
            return code, self._uncentred(code.atoms_sum(W_fast))
        values, x_hat = tied_code(x, W, self.b_enc, found)
        return SparseCode(found, values), self._uncentred(x_hat)

    def _centred(self, x: Tensor) -> Tensor:
        return x - self.centre if self.centred else x

    def _uncentred(self, x_hat: Tensor) -> Tensor:
        return x_hat + self.centre if self.centred else x_hat

    def row_penalties(self, code: Code) -> dict[str, Float[Tensor, " batch"]]:
        """`l1` times the sum of f."""
        return {"sparsity": self.l1 * code.l1()}

    def tensors(self) -> Tensors:
        """The equivalent untied tensors; the centre is folded into both biases."""
        W = unit_rows(self.W)
        return Tensors(W.T, self.b_enc - W @ self.centre, W, self.centre)

    def latent_parameters(self) -> list[LatentParameter]:
        """The rows of M and the entries of b."""
        return [LatentParameter(self.W, 0), LatentParameter(self.b_enc, 0)]

    @torch.no_grad()
    def revive(
        self,
        latents: Int[Tensor, " n"],
        x: Float[Tensor, "n d_in"],
        direction: Float[Tensor, "n d_in"],
        alive: Bool[Tensor, " d_sae"],
    ) -> None:
        """Row := the direction; b := -(1 - 0.2) times the projection of the (centred) input.

        The published rule shrinks the revived *encoder* row to 0.2 times the mean alive norm so
        that the latent answers weakly at first. A tied row has length 1 by definition, so the
        bias damps instead: the latent answers the input that it was drawn for with 0.2 of the
        projection, and inputs that point elsewhere not at all (docs/adr/0002). The raw row gets
        the mean length of the alive raw rows, so that it turns at the same pace as they do.
        """
        norm = self.W[alive].norm(dim=1).mean() if bool(alive.any()) else 1.0
        self.W[latents] = direction * norm
        # a residual may point away from its input; the bias must stay negative even then
        projection = ((x - self.centre) * direction).sum(dim=1).abs()
        self.b_enc[latents] = -(1 - REVIVED_RESPONSE) * projection
