"""An encoder of several steps: unrolled iterative shrinkage (LISTA)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from sae.dictionaries.base import register
from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.l1 import L1
from sae.dictionaries.products import sparse_enough
from sae.kernels import Pattern, latent_values
from sae.settings import setting


@register("lista")
class Lista(L1):
    r"""`l1` with a refined code: `steps` times $f \leftarrow relu(f + (x - \hat x(f)) W_{enc} + b_{enc})$.

    One linear map cannot tell apart atoms that overlap; here the code of one pass is corrected by
    what it misses. Each step costs an encode and a decode more. The same two matrices serve all
    steps, and the code stays non-negative (the authors' variant learns separate matrices, signed
    shrinkage and a momentum), so that the saved SAE is its four tensors and the number of steps.

    Source: Gregor & LeCun 2010; HoagyC/sparse_coding `FunctionalLISTADenoisingSAE` (3 steps).
    """  # noqa: E501

    class Config(L1.Config):
        """Settings."""

        steps: int = setting(3, ge=1, le=100, help="refinements of the code")

    activation = "lista"
    transcodes = False  # the code is refined by what the input lacks

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Code after all refinement steps."""
        code = super().encode_code(x)
        for _ in range(self.config.steps):
            code = self._refined(code, x)
        return code

    def _refined(self, code: Code, x: Tensor) -> Code:
        missed, rows = x - self.reconstruct(code, x), self.encoder_rows
        if isinstance(code, SparseCode):
            with torch.no_grad():
                u = linear(missed, rows, self.b_enc)
                u.view(-1)[_places(code.pattern)] += code.values.to(u.dtype)
                pattern = sparse_enough(u, self.kernels)
            if pattern is not None:
                change = latent_values(missed, rows, self.b_enc, pattern)
                return SparseCode(pattern, (_at(code, pattern) + change).relu())
        return DenseCode((code.dense() + linear(missed, rows, self.b_enc)).relu())


def _places(pattern: Pattern) -> Tensor:
    """Place of each pair in the flat [batch * d_sae]; rising."""
    return pattern.rows * pattern.d_sae + pattern.latents


def _at(code: SparseCode, pattern: Pattern) -> Tensor:
    """The code at the pairs of another pattern; 0 where it has none."""
    if not len(code.values):
        return code.values.new_zeros(len(pattern.latents))
    own, wanted = _places(code.pattern), _places(pattern)
    found = torch.searchsorted(own, wanted).clamp_max(len(own) - 1)
    return code.values[found] * (own[found] == wanted)
