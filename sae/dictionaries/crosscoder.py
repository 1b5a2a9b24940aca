"""Crosscoder: one code that is read from several layers and written to all of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.april import April
from sae.dictionaries.base import register
from sae.dictionaries.codes import Code, SparseCode
from sae.dictionaries.untied import START_BIAS
from sae.errors import ConfigError


@register("crosscoder")
class Crosscoder(April):
    r"""ReLU code of all layers together, penalty $l1 \sum_i f_i \sum_l \|W_{dec,i}^l\|$.

    A vector holds the activations of all layers one beside the other, each layer with a scale of
    its own, so that none outweighs the others: $f = relu(\sum_l x^l W_{enc}^l + b_{enc})$,
    $\hat x^l = f W_{dec}^l + b_{dec}^l$. The sum of the norms, instead of the whole row's norm,
    lets a latent belong to few layers. Norms are free, as in `april`, from which start and
    revival are taken; the saved SAE has rows of length 1 over all layers together. The squared
    error is a mean over the entries of all layers.

    Source: Lindsey et al., "Sparse Crosscoders for Cross-Layer Features and Model Diffing",
    transformer-circuits.pub/2024/crosscoders.

    Args:
        d_in: Width of the joined vectors.
        d_sae: Number of latents.
        l1: Coefficient of the penalty, at least 0.
        widths: Widths of the layers, in order; left out: one layer.
        start_bias: Added to the encoder biases at the start, as in `april`.
        mean: Scaled mean of the joined vectors: the start of b_dec.
        generator: Source of the initial weights.
    """

    transcodes, joins = False, True

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        l1: float,
        widths: Sequence[int] = (),
        start_bias: float = START_BIAS,
        mean: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae, l1=l1, start_bias=start_bias, mean=mean, generator=generator)
        self.widths = list(widths) or [d_in]
        if sum(self.widths) != d_in:
            raise ConfigError(f"widths={self.widths} must add up to d_in={d_in}.")

    def row_penalties(self, code: Code) -> dict[str, Float[Tensor, " batch"]]:
        """`l1` times the sum of f times the summed norms of its decoder rows, one a layer."""
        norms = torch.stack([part.norm(dim=1) for part in self.W_dec.split(self.widths, 1)]).sum(0)
        if isinstance(code, SparseCode):
            norms = norms[code.pattern.latents]
        return {"sparsity": self.l1 * code.with_values(code.values * norms).l1()}
