"""Principal components."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.baselines.base import Centre, Centred, Learned, Vectors, register
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.progress import progress
from sae.settings import setting


@register("pca")
class PCA(Centred):
    """Eigenvectors of the covariance of all training vectors, by falling variance.

    `k` keeps, for every vector, the components with the largest |score| (the authors' dynamic PCA);
    `components` keeps the first ones for all vectors (their static PCA). Both go together.
    """

    free: ClassVar[frozenset[str]] = Centred.free | {"components"}
    costly: ClassVar[bool] = True

    components: int | None = setting(None, ge=1, help="first components to use; null: all")
    split: bool = setting(False, help="true: both signs as latents of their own, and a ReLU")
    centre: Centre = setting(
        "mean", help="mean, or none: scores of x itself, as the authors' encoder takes them"
    )

    def latents(self, d_in: int) -> int:
        """One for each component; two if split."""
        return (1 + self.split) * (self.components or d_in)

    def check(self, d_in: int) -> None:
        """Refuse more components than there are."""
        check_components(self.word, self.components, d_in)
        super().check(d_in)

    def learn(self, x: Vectors) -> Learned:
        """One pass for the covariance, then its eigenvectors."""
        mean, covariance = moments(x)
        values, vectors = torch.linalg.eigh(covariance)
        values, rows = values.flip(0).clamp_min(0), vectors.flip(1).T.contiguous()
        # eigenvectors have no sign of their own: the largest entry of each is positive
        largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
        ratio = values / values.sum().clamp_min(1e-300)
        return Learned(
            {"mean": mean, "rows": rows * largest.sign()},
            {"vectors": x.num_rows, "explained_variance_ratio": ratio.tolist()},
        )

    def assemble(self, learned: Learned) -> SAE:
        """The decoder holds the components, the encoder their transpose."""
        rows = learned.tensors["rows"][: self.components]
        form = "split" if self.split else "signed"
        return self.sae(rows, rows.T, self.centre_of(learned.tensors["mean"]), form)


def moments(x: Vectors) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    """Mean and covariance (divided by n) of all vectors, in one pass and float64."""
    shift = x.mean  # near the mean, so that little is lost where one direction is massive
    first = torch.zeros(x.d_in, dtype=torch.float64)
    second = torch.zeros(x.d_in, x.d_in, dtype=torch.float64)
    with progress("fit covariance", x.num_rows, "vectors") as advance:
        for chunk in x.chunks():
            rows = chunk.double() - shift
            first += rows.sum(dim=0)
            second.addmm_(rows.T, rows)
            advance(len(rows))
    offset = first / x.num_rows
    return shift + offset, second / x.num_rows - torch.outer(offset, offset)


def check_components(word: str, components: int | None, d_in: int) -> None:
    """Refuse more components than coordinates.

    Raises:
        ConfigError: If there are.
    """
    if components is not None and not 1 <= components <= d_in:
        raise ConfigError(
            f"sae.components={components} must be between 1 and {d_in}, the width of the "
            f"activations, with sae={word}; null takes all."
        )
