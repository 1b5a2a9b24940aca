"""The paper's dictionary: one matrix that both detects and writes (arXiv 2309.08600, eq. 1-4)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.dictionaries.base import PENALTY, Dictionary, Tensors, register
from sae.dictionaries.codes import Code
from sae.dictionaries.penalty import L1Config, StartConfig
from sae.dictionaries.products import relu_code
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.dictionaries.untied import GRADIENT_NORM
from sae.errors import ConfigError
from sae.kernels import unit_rows
from sae.settings import setting

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
    """

    class Config(L1Config, StartConfig, Dictionary.Config):
        """Settings."""

        centre: Literal["none", "mean"] = setting(
            "none", help="mean subtracts the training mean before and adds it after"
        )

    coefficient = "l1"
    per_latent = ("W", "b_enc")
    gradient_norm = GRADIENT_NORM

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        if config.centre == "mean" and init.mean is None:
            raise ConfigError(
                "sae.centre=mean needs the mean of the training activations, and none was given. "
                "Pass it to the constructor, or choose sae.centre=none."
            )
        centre = init.mean if config.centre == "mean" else None
        self._start(centre, init.bias(config.start_bias), init.generator)

    def _start(self, centre: Tensor | None, bias: float, generator: torch.Generator | None) -> None:
        self.centred = centre is not None
        self.W = nn.Parameter(
            nn.init.xavier_uniform_(torch.empty(self.d_sae, self.d_in), generator=generator)
        )
        self.b_enc = nn.Parameter(torch.full((self.d_sae,), float(bias)))
        start = torch.zeros(self.d_in) if centre is None else centre
        self.register_buffer("centre", start.detach().clone().float())
        self.centre: Tensor

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """ReLU code of the centred input."""
        return relu_code(self._centred(x), unit_rows(self.W), self.b_enc, self.kernels)

    def reconstruct(
        self, code: Code, x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_in"]:
        """Sum of the firing atoms, plus the centre."""
        x_hat = code.atoms_sum(unit_rows(self.W))
        return x_hat + self.centre if self.centred else x_hat

    def _centred(self, x: Tensor) -> Tensor:
        return x - self.centre if self.centred else x

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """`l1` times the sum of f."""
        return {PENALTY: self.config.l1 * found.code.l1()}

    def tensors(self) -> Tensors:
        """The equivalent untied tensors; the centre is folded into both biases."""
        W = unit_rows(self.W)
        return Tensors(W.T, self.b_enc - W @ self.centre, W, self.centre)

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
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
