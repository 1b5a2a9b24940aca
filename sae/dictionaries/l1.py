"""Untied ReLU dictionary with an L1 penalty (Towards Monosemanticity, 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import check_coefficient, register
from sae.dictionaries.codes import Code
from sae.dictionaries.untied import GRADIENT_NORM, START_BIAS, Untied


@register("l1")
class L1(Untied):
    """ReLU code, penalty `l1` times the sum of f; weights and constraints as in `Untied`.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        l1: Coefficient of the penalty, at least 0.
        start_bias: Encoder biases at the start; 0: half of the latents fire.
        mean: Scaled mean of the training split.
        generator: Source of the initial weights.
    """

    options = frozenset({"l1", "start_bias"})
    coefficient = "l1"
    gradient_norm = GRADIENT_NORM

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l1: float,
        start_bias: float = START_BIAS,
        mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae, mean=mean, generator=generator)
        self.l1 = check_coefficient("l1", l1)
        self.b_enc.data.fill_(start_bias)

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """ReLU of the pre-activations."""
        return self._relu_code(*self.encoder_terms(x))

    def row_penalties(self, code: Code) -> dict[str, Float[Tensor, " batch"]]:
        """`l1` times the sum of f."""
        return {"sparsity": self.l1 * code.l1()}
