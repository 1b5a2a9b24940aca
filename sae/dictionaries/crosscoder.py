"""Crosscoder: one code that is read from several layers and written to all of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.april import April
from sae.dictionaries.base import register
from sae.dictionaries.shape import Init, Shape


@register("crosscoder")
class Crosscoder(April):
    r"""ReLU code of all layers together, penalty $l1 \sum_i f_i \sum_l \|W_{dec,i}^l\|$.

    A vector concatenates the activations of all layers, each layer with a scale of
    its own, so that none outweighs the others: $f = relu(\sum_l x^l W_{enc}^l + b_{enc})$,
    $\hat x^l = f W_{dec}^l + b_{dec}^l$. The sum of the norms, instead of the whole row's norm,
    lets a latent belong to few layers. Norms are free, as in `april`, from which start and
    revival are taken; the saved SAE has rows of length 1 over all layers together. The squared
    error is a mean over the entries of all layers.

    Source: Lindsey et al., "Sparse Crosscoders for Cross-Layer Features and Model Diffing",
    transformer-circuits.pub/2024/crosscoders.
    """

    transcodes, joins = False, True

    def __init__(self, config: April.Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.widths = list(shape.layers) or [shape.d_in]

    def atom_norms(self) -> Float[Tensor, " d_sae"]:
        """Norms of the decoder's rows in each layer, summed."""
        return torch.stack([part.norm(dim=1) for part in self.W_dec.split(self.widths, 1)]).sum(0)
