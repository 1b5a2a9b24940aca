"""TopK dictionary: the k largest pre-activations fire (arXiv 2406.04093)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from sae.dictionaries.base import NOMINAL, Moment, StepOutput, register
from sae.dictionaries.codes import Code, SparseCode
from sae.dictionaries.sae import SAEConfig
from sae.dictionaries.selected import Selected, wider
from sae.dictionaries.shape import Init, Shape
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
            False, help="true adds the loss of the code with 4 k latents: serves other k, too"
        )

    encoder_start = ENCODER_START
    betas = (0.5, 0.999)

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.multi_k = config.multi_k

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Indices and values of the k largest pre-activations."""
        return self.selected_code(
            *self.encoder_terms(x),
            select=lambda pre: select_topk(pre, min(self.k, pre.shape[1])),
            candidates=lambda pre: select_topk(pre, min(wider(self.k), self.d_sae)),
        )

    def training_output(
        self, batch: Float[Tensor, "batch width"], moment: Moment = NOMINAL
    ) -> StepOutput:
        """With `multi_k`, the larger code is selected from the same pre-activations."""
        if not self.multi_k:
            return super().training_output(batch, moment)
        x, target = self.split(batch)
        larger: list[Pattern] = []

        def select(pre: Tensor) -> Pattern:
            larger.append(select_topk(pre, min(MULTI_K_FACTOR * self.k, self.d_sae)))
            return select_topk(pre, self.k)

        terms = self.encoder_terms(x)
        code = self.selected_code(*terms, select=select)
        output = self._output(x, target, code, self.reconstruct(code, x), moment)
        more = SparseCode(larger[0], torch.relu(latent_values(*terms, larger[0])))
        error = mse_loss(self.reconstruct(more, x).to(x.dtype), target)
        return output._replace(terms=output.terms | {"multi_k": MULTI_K_WEIGHT * error})

    def inference_config(self) -> SAEConfig:
        """How the saved SAE encodes: TopK, then ReLU."""
        return replace(super().inference_config(), activation="topk", k=self.k)
