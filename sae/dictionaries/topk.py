"""TopK dictionary: the k largest pre-activations fire (arXiv 2406.04093)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import register
from sae.dictionaries.codes import Code
from sae.dictionaries.sae import SAEConfig
from sae.dictionaries.untied import Untied
from sae.errors import ConfigError
from sae.kernels import select_topk


@register("topk")
class TopK(Untied):
    """Keeps the k largest pre-activations of every vector, then ReLU; no penalty.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        k: How many latents may fire per vector, 1 to d_sae.
        mean: Scaled mean of the training split.
        generator: Source of the initial weights.
    """

    options = frozenset({"k"})

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        k: int,
        mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae, mean=mean, generator=generator)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
            raise ConfigError(f"k={k!r} must be a whole number from 1 to d_sae={d_sae}.")
        self.k = k

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Indices and values of the k largest pre-activations."""
        return self._selected_code(
            *self.encoder_terms(x), select=lambda pre: select_topk(pre, self.k)
        )

    def inference_config(self) -> SAEConfig:
        """How the saved SAE encodes: TopK, then ReLU."""
        return replace(super().inference_config(), activation="topk", k=self.k)
