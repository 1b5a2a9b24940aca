"""An encoder of several steps: unrolled iterative shrinkage (LISTA)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from sae.dictionaries.base import register
from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.l1 import L1
from sae.dictionaries.sae import SAEConfig
from sae.dictionaries.untied import START_BIAS
from sae.errors import ConfigError
from sae.kernels import Pattern, latent_values


@register("lista")
class Lista(L1):
    r"""`l1` with a refined code: `steps` times $f \leftarrow relu(f + (x - \hat x(f)) W_{enc} + b_{enc})$.

    One linear map cannot tell apart atoms that overlap; here the code of one pass is corrected by
    what it misses. Each step costs an encode and a decode more. The same two matrices serve all
    steps, and the code stays non-negative (the authors' variant learns separate matrices, signed
    shrinkage and a momentum), so that the saved SAE is its four tensors and the number of steps.

    Source: Gregor & LeCun 2010; HoagyC/sparse_coding `FunctionalLISTADenoisingSAE` (3 steps).

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        l1: Coefficient of the penalty, at least 0.
        steps: Refinements, 1 to 100.
        mean: Scaled mean of the training split.
        generator: Source of the initial weights.
    """  # noqa: E501

    options = L1.options | {"steps"}
    transcodes = False  # the code is refined by what the input lacks

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l1: float,
        steps: int = 3,
        start_bias: float = START_BIAS,
        mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae, l1=l1, start_bias=start_bias, mean=mean, generator=generator)
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 100:
            raise ConfigError(f"sae.steps={steps!r} must be a whole number from 1 to 100.")
        self.steps = steps

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """The refined code."""
        code = super().encode_code(x)
        for _ in range(self.steps):
            code = self._refined(code, x)
        return code

    def _refined(self, code: Code, x: Tensor) -> Code:
        missed, rows = x - self.decode_code(code), self.encoder_rows
        if isinstance(code, SparseCode):
            with torch.no_grad():
                u = linear(missed, rows, self.b_enc)
                u.view(-1)[_places(code.pattern)] += code.values.to(u.dtype)
                pattern = self._sparse_enough(u)
            if pattern is not None:
                change = latent_values(missed, rows, self.b_enc, pattern)
                return SparseCode(pattern, (_at(code, pattern) + change).relu())
        return DenseCode((code.dense() + linear(missed, rows, self.b_enc)).relu())

    def inference_config(self) -> SAEConfig:
        """How the saved SAE encodes."""
        return replace(super().inference_config(), activation="lista", steps=self.steps)


def _places(pattern: Pattern) -> Tensor:
    """Of each pair in the flat [batch * d_sae]; rising."""
    return pattern.rows * pattern.d_sae + pattern.latents


def _at(code: SparseCode, pattern: Pattern) -> Tensor:
    """The code at the pairs of another pattern; 0 where it has none."""
    if not len(code.values):
        return code.values.new_zeros(len(pattern.latents))
    own, wanted = _places(code.pattern), _places(pattern)
    found = torch.searchsorted(own, wanted).clamp_max(len(own) - 1)
    return code.values[found] * (own[found] == wanted)
