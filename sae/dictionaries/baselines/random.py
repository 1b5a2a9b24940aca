"""Random directions, independent of the data."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.baselines.base import Centred, Learned, Vectors, register, unit_rows_and_norms
from sae.dictionaries.sae import SAE
from sae.settings import setting

_ROWS_AT_ONCE = 2048


@register("random")
class Random(Centred):
    r"""Gaussian directions of length 1, ReLU of the projections (the authors' `RandomDict`).

    Directions overlap, so that $\sum_j f_j d_j$ has the wrong size. One number, the gain g, is
    fitted to the data: $g = \sum \langle x, y\rangle / \sum \|y\|^2$ with
    $y = \sum_j relu(\langle x, d_j\rangle)_k d_j$, over a sample and with x less the centre.
    """

    free: ClassVar[frozenset[str]] = frozenset()  # the gain depends on all
    costly: ClassVar[bool] = True

    dict_ratio: float = setting(8.0, gt=0, help="directions per coordinate")
    sample_vectors: int = setting(
        16_384, ge=1, help="training vectors that the size of the code is fitted to"
    )
    seed: int = setting(0, ge=0, help="seed of the directions and of the sample")

    def latents(self, d_in: int) -> int:
        """`dict_ratio` for each coordinate."""
        return max(1, round(self.dict_ratio * d_in))

    def learn(self, x: Vectors) -> Learned:
        """Draw the directions and fit the gain."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.latents(x.d_in), x.d_in, generator=generator)
        rows = unit_rows_and_norms(drawn)[0]
        sae = self.sae(rows, rows.T, self.centre_of(x.mean), "relu")
        sample = x.sample(self.sample_vectors, self.seed)
        gain = least_squares_gain(sae, sample)
        facts = {"gain": gain, "sample_vectors": len(sample)}
        return Learned({"mean": x.mean, "rows": rows, "gain": torch.tensor(gain)}, facts)

    def assemble(self, learned: Learned) -> SAE:
        """The decoder holds the directions, the encoder their transpose times the gain."""
        rows, gain = learned.tensors["rows"], learned.tensors["gain"].double()
        return self.sae(rows, gain * rows.T, self.centre_of(learned.tensors["mean"]), "relu")


def least_squares_gain(sae: SAE, x: Float[Tensor, "batch d_in"]) -> float:
    """Factor of the code that makes the reconstruction of `x` fit best; 1 where nothing fires."""
    dot = square = 0.0
    for part in x.split(_ROWS_AT_ONCE):
        y = (sae(part) - sae.b_dec).double()
        dot += float(((part - sae.b_dec).double() * y).sum())
        square += float(y.square().sum())
    return dot / square if square > 0 else 1.0


@register("rotation")
class Rotation(Centred):
    """A random orthogonal basis, uniform over all of them, signed."""

    split: bool = setting(False, help="true: both signs as latents of their own, and a ReLU")
    seed: int = setting(0, ge=0, help="seed of the basis")

    def latents(self, d_in: int) -> int:
        """One for each coordinate; two if split."""
        return (1 + self.split) * d_in

    def learn(self, x: Vectors) -> Learned:
        """Draw the basis. The signs of R make it uniform (Mezzadri 2007)."""
        generator = torch.Generator().manual_seed(self.seed)
        gaussian = torch.randn(x.d_in, x.d_in, generator=generator, dtype=torch.float64)
        Q, R = torch.linalg.qr(gaussian)
        return Learned({"mean": x.mean, "rows": Q * R.diagonal().sign()}, {})

    def assemble(self, learned: Learned) -> SAE:
        """The decoder holds the basis, the encoder its transpose."""
        rows, mean = learned.tensors["rows"], learned.tensors["mean"]
        form = "split" if self.split else "signed"
        return self.sae(rows, rows.T, self.centre_of(mean), form)
