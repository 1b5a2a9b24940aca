"""TopK dictionary: the k largest pre-activations fire (arXiv 2406.04093)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from sae.dictionaries.base import register
from sae.dictionaries.codes import Code, SparseCode
from sae.dictionaries.products import selected_code
from sae.dictionaries.selected import Selected, wider
from sae.dictionaries.step import Encoding, StepState
from sae.dictionaries.untied import ENCODER_START
from sae.kernels import Pattern, latent_values, select_topk
from sae.settings import setting

MULTI_K_FACTOR, MULTI_K_WEIGHT = 4, 1 / 8
"""Multi-TopK: the loss at 4 k counts an eighth (arXiv 2406.04093, A.3)."""


@register("topk")
class TopK(Selected):
    """Keeps the k largest pre-activations of every vector, then ReLU; no penalty."""

    class Config(Selected.Config):
        """Settings."""

        multi_k: bool = setting(
            False, help="true adds the loss of the code with 4 k latents: also serves other k"
        )

    activation = "topk"
    encoder_start = ENCODER_START
    betas = (0.5, 0.999)

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Indices and values of the k largest pre-activations."""
        return selected_code(
            *self.encoder_terms(x),
            self.kernels,
            select=lambda pre: select_topk(pre, min(self.config.k, pre.shape[1])),
            candidates=lambda pre: select_topk(pre, min(wider(self.config.k), self.d_sae)),
        )

    def encoding(self, x: Tensor, target: Tensor, state: StepState | None = None) -> Encoding:
        """With `multi_k`, a larger code is selected from the same pre-activations."""
        if state is None or not self.config.multi_k:
            return super().encoding(x, target)
        larger: list[Pattern] = []

        def select(pre: Tensor) -> Pattern:
            larger.append(select_topk(pre, min(MULTI_K_FACTOR * self.config.k, self.d_sae)))
            return select_topk(pre, self.config.k)

        terms = self.encoder_terms(x)
        code = selected_code(*terms, self.kernels, select)
        more = SparseCode(larger[0], torch.relu(latent_values(*terms, larger[0])))
        return Encoding(x, target, code, self.reconstruct(code, x), more)

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """AuxK, and the error of the larger code's reconstruction."""
        terms = super().loss_rows(found, state)
        if found.other is None:
            return terms
        x_hat = self.reconstruct(found.other, found.x).to(found.target.dtype)
        return terms | {"multi_k": MULTI_K_WEIGHT * mse_loss(x_hat, found.target)}
