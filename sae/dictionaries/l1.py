"""Untied ReLU dictionary with an L1 penalty (Towards Monosemanticity, 2023)."""

from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import PENALTY, register
from sae.dictionaries.codes import Code
from sae.dictionaries.penalty import L1Config, StartConfig
from sae.dictionaries.products import relu_code
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.dictionaries.untied import GRADIENT_NORM, Untied


@register("l1")
class L1(Untied):
    """ReLU code, penalty `l1` times the sum of f; weights and constraints as in `Untied`."""

    class Config(L1Config, StartConfig, Untied.Config):
        """Settings."""

    coefficient = "l1"
    gradient_norm = GRADIENT_NORM

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.b_enc.data.fill_(init.bias(config.start_bias))

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """ReLU of the pre-activations."""
        return relu_code(*self.encoder_terms(x), self.kernels)

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """`l1` times the sum of f."""
        return {PENALTY: self.config.l1 * found.code.l1()}
