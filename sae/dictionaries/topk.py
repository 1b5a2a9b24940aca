"""TopK dictionary: the k largest pre-activations fire (arXiv 2406.04093)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from sae.dictionaries.auxk import auxk_loss
from sae.dictionaries.base import (
    NOMINAL,
    Moment,
    StepOutput,
    check_coefficient,
    check_flag,
    register,
)
from sae.dictionaries.codes import Code, SparseCode
from sae.dictionaries.sae import SAEConfig
from sae.dictionaries.untied import ENCODER_START, Untied
from sae.errors import ConfigError
from sae.kernels import Pattern, latent_values, select_topk

MULTI_K_FACTOR, MULTI_K_WEIGHT = 4, 1 / 8
"""Multi-TopK: the loss at 4 k counts an eighth (arXiv 2406.04093, A.3)."""


def wider(k: int) -> int:
    """How many candidates hold the k largest, where pre-activations are near and not exact.

    All but 1 in 10,000 of 32 are among 40 (docs/adr/0023).
    """
    return k + max(1, k // 4)


@register("topk")
class TopK(Untied):
    """Keeps the k largest pre-activations of every vector, then ReLU; no penalty.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        k: How many latents may fire per vector, 1 to d_sae.
        auxk: Weight of the AuxK loss of the dead latents (`auxk_loss`); 0 for none.
        multi_k: Add the loss of the code with 4 k latents, at an eighth of the weight, so that the
            dictionary also serves other k than its own.
        mean: Scaled mean of the training split.
        generator: Source of the initial weights.
    """

    options = frozenset({"k", "auxk", "multi_k"})
    encoder_start = ENCODER_START
    betas = (0.5, 0.999)

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        k: int,
        auxk: float = 0.0,
        multi_k: bool = False,
        mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae, mean=mean, generator=generator)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
            raise ConfigError(f"k={k!r} must be a whole number from 1 to d_sae={d_sae}.")
        self.k, self.multi_k = k, check_flag("sae.multi_k", multi_k)
        self.auxk = check_coefficient("sae.auxk", auxk)

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

    def _output(
        self, x: Tensor, target: Tensor, code: Code, x_hat: Tensor, moment: Moment
    ) -> StepOutput:
        output = super()._output(x, target, code, x_hat, moment)
        if not self.auxk or moment.dead is None:
            return output
        loss = auxk_loss(self, x, output.x_hat, target, moment.dead)
        # 0, not nothing: Lightning would log the last value that there was
        auxk = output.x_hat.new_zeros(()) if loss is None else self.auxk * loss
        return output._replace(terms=output.terms | {"auxk": auxk})

    def inference_config(self) -> SAEConfig:
        """How the saved SAE encodes: TopK, then ReLU."""
        return replace(super().inference_config(), activation="topk", k=self.k)
