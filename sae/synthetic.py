"""Worlds of known features in superposition: vectors whose true dictionary and codes are known.

A vector is a sum of a few of `num_features` directions, more than there are dimensions:
`x = codes @ features + noise`. What an SAE finds can be compared with what is there. No LM.

Source: Sharkey, Braun & Millidge, interim report on superposition; the two branches follow the
code of Cunningham et al. 2023 (arXiv 2309.08600), `sc_datasets/random_dataset.py`.
"""

from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae.errors import ConfigError
from sae.provenance import content_key
from sae.settings import Settings, setting


class Sample(NamedTuple):
    """Vectors with their ground truth.

    Attributes:
        codes: True coefficients: which features hold, and how strongly. Unit: that of `x`.
        expressed: Coefficients that are in `x`; `codes` less the absorbed parents.
        x: `expressed @ features + noise`.
    """

    codes: Float[Tensor, "batch num_features"]
    expressed: Float[Tensor, "batch num_features"]
    x: Float[Tensor, "batch d_in"]


class World(Settings):
    r"""Settings of a world; everything else follows from them and the seed.

    Features without a parent are *roots*: they come first, and with `hierarchy=0` all are.
    The profile of root i is $decay^i (i+1)^{-zipf}$.

    - `uncorrelated`: root i fires with probability `profile_i * active / roots`, independently. The
      mean number of firing roots is then far below `active` (0.97 at the defaults, and 38 % of
      the vectors are zero), as in the authors' code; `rescale` makes it `active`.
    - `correlated`: probabilities are Phi(g) * profile, rescaled so that their mean is
      `active / roots`, with g normal of a random covariance: a symmetric matrix of uniform numbers,
      shifted until it is positive definite, so its diagonal is not 1. A vector without any feature
      gets a random root of value 1. The authors draw ONE g for a whole batch, so that a batch
      knows only some of the features (`correlation_per=batch`); the default draws one for each
      vector, which is what correlated features mean.

    Raises:
        ConfigError: If a setting is out of range or has no effect.

    Example:
        >>> codes, x = World(d_in=4, num_features=8, active=2.0, decay=1.0).sample(100, seed=1)
        >>> codes.shape, x.shape
        (torch.Size([100, 8]), torch.Size([100, 4]))
    """

    where = "activations."

    d_in: int = setting(256, ge=1, help="dimensions of a vector")
    num_features: int = setting(512, ge=1, help="true features, roots and children")
    active: float = setting(
        5.0, gt=0, help="roots that hold in a vector, before the profile takes its part"
    )
    decay: float = setting(
        0.99, gt=0, le=1, help="ratio of the profiles of neighbouring roots; 1: no decay"
    )
    zipf: float = setting(0.0, ge=0, help="exponent of the profile's heavy tail; 0: none")
    rescale: bool = setting(
        False, help="`active` roots hold in the mean; false is the authors' code"
    )
    branch: Literal["uncorrelated", "correlated"] = setting(
        "uncorrelated", help="whether features hold independently of each other"
    )
    correlation_per: Literal["sample", "batch"] = setting(
        "sample", help="what shares a draw of g (correlated only); batch is the authors' code"
    )
    coefficients: Literal["uniform", "product"] = setting(
        "uniform", help="coefficients are uniform in (0, 1), or products of two such"
    )
    hierarchy: float = setting(
        0.0,
        ge=0,
        lt=1,
        help="share of the features that are children: each has one parent, the roots in turn, "
        "and holds only where its parent does",
    )
    child_probability: float = setting(
        0.3, gt=0, le=1, help="how often a child holds where its parent does"
    )
    absorption: float = setting(
        0.0,
        ge=0,
        le=1,
        help="how often a child that holds keeps its parent's direction out of x; the codes still "
        "say that the parent holds",
    )
    noise: float = setting(0.0, ge=0, help="standard deviation of noise on each coordinate")
    seed: int = setting(0, ge=0, help="decides features and covariance")

    @model_validator(mode="after")
    def _go_together(self) -> "World":
        if self.absorption and not self.num_children:
            raise ConfigError(
                f"absorption={self.absorption} has no effect without children. Give hierarchy, "
                "the share of the features that are children, for example 0.5."
            )
        if self.active > self.num_roots:
            raise ConfigError(
                f"active={self.active} must be at most {self.num_roots}, the number of features "
                "that are no children."
            )
        highest = float(self._root_probabilities().max())
        if self.branch == "uncorrelated" and highest > 1:
            raise ConfigError(
                f"active={self.active} with rescale=true gives the most frequent feature the "
                f"probability {highest:.3g}. Use a smaller active, or a flatter profile (decay, "
                "zipf)."
            )
        return self

    @property
    def num_children(self) -> int:
        """Number of features that have a parent: the last ones."""
        return min(round(self.hierarchy * self.num_features), self.num_features - 1)

    @property
    def num_roots(self) -> int:
        """Number of features without a parent: the first ones."""
        return self.num_features - self.num_children

    @property
    def parents(self) -> Int[Tensor, " num_features"]:
        """Parent of each feature, -1 of roots."""
        children = torch.arange(self.num_children) % self.num_roots
        return torch.cat([torch.full((self.num_roots,), -1), children])

    @cached_property
    def features(self) -> Float[Tensor, "num_features d_in"]:
        """The true directions: Gaussian, of length 1, a row each."""
        directions = torch.randn(
            self.num_features, self.d_in, generator=self._generator("features")
        )
        return directions / directions.norm(dim=1, keepdim=True)

    @cached_property
    def probabilities(self) -> Float[Tensor, " num_features"]:
        """Probability of each feature, in the uncorrelated branch; float64."""
        roots = self._root_probabilities()
        children = roots[self.parents[self.num_roots :]] * self.child_probability
        return torch.cat([roots, children])

    @cached_property
    def covariance(self) -> Float[Tensor, "num_roots num_roots"]:
        """Covariance of g, in the correlated branch; float64."""
        n = self.num_roots
        matrix = torch.rand(n, n, generator=self._generator("covariance"), dtype=torch.float64)
        matrix = (matrix + matrix.T) / 2
        lowest = float(torch.linalg.eigvalsh(matrix)[0])
        return matrix - 1.001 * min(lowest, 0.0) * torch.eye(n, dtype=torch.float64)

    def sample(
        self, n: int, seed: int
    ) -> tuple[Float[Tensor, "batch num_features"], Float[Tensor, "batch d_in"]]:
        """True codes and vectors; the same for the same seed. See `draw`."""
        drawn = self.draw(n, torch.Generator().manual_seed(seed))
        return drawn.codes, drawn.x

    def draw(self, n: int, generator: torch.Generator) -> Sample:
        """`n` vectors with their ground truth, float32; one batch of the correlated branch.

        Args:
            n: Number of vectors.
            generator: Decides them, beside the world.
        """
        holds = self._roots_that_hold(n, generator)
        empty = ~holds.any(1) if self.branch == "correlated" else None
        if empty is not None:
            chosen = torch.randint(0, self.num_roots, (n,), generator=generator)
            holds[empty, chosen[empty]] = True
        if self.num_children:
            drawn = torch.rand(n, self.num_children, generator=generator) < self.child_probability
            holds = torch.cat([holds, holds[:, self.parents[self.num_roots :]] & drawn], dim=1)
        rows, columns = holds.nonzero(as_tuple=True)
        values = 1 - torch.rand(len(rows), generator=generator)  # (0, 1]: what holds is not 0
        if empty is not None:
            values[empty[rows] & (columns < self.num_roots)] = 1.0
        if self.coefficients == "product":
            values *= 1 - torch.rand(len(rows), generator=generator)
        codes = torch.zeros(n, self.num_features)
        codes[rows, columns] = values
        expressed = self._absorbed(codes, generator) if self.absorption else codes
        x = self._sum(expressed)
        if self.noise:
            x += self.noise * torch.randn(x.shape, generator=generator)
        return Sample(codes, expressed, x)

    def to_config(self) -> dict[str, object]:
        """Plain values that build this world again: `World(**config)`."""
        return self.model_dump()

    def _roots_that_hold(self, n: int, generator: torch.Generator) -> Bool[Tensor, "batch roots"]:
        if self.branch == "uncorrelated":
            probabilities = self._root_probabilities().float()
        else:
            draws = n if self.correlation_per == "sample" else 1
            # float64, so that the order of a matrix product's sums decides nothing
            g = torch.randn(draws, self.num_roots, generator=generator).double()
            phi = (1 + torch.erf(g @ self._cholesky.T / 2**0.5)) / 2
            probabilities = phi * self._profile()
            share = self.active / self.num_roots
            probabilities *= share / probabilities.mean(1, keepdim=True)
        return torch.rand(n, self.num_roots, generator=generator) < probabilities

    def _absorbed(
        self, codes: Float[Tensor, "batch num_features"], generator: torch.Generator
    ) -> Float[Tensor, "batch num_features"]:
        """Coefficients in x: without the parents whose direction a child keeps out."""
        rows, children = codes[:, self.num_roots :].nonzero(as_tuple=True)
        hit = torch.rand(len(rows), generator=generator) < self.absorption
        expressed = codes.clone()
        expressed[rows[hit], self.parents[self.num_roots + children[hit]]] = 0.0
        return expressed

    def _sum(self, codes: Float[Tensor, "batch num_features"]) -> Float[Tensor, "batch d_in"]:
        """`codes @ features`, added up row by row: the same bits with any number of threads."""
        rows, columns = codes.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(codes))
        return embedding_bag(
            columns, self.features, counts.cumsum(0) - counts, mode="sum",
            per_sample_weights=codes[rows, columns],
        )  # fmt: skip

    def _profile(self) -> Float[Tensor, " roots"]:
        i = torch.arange(self.num_roots, dtype=torch.float64)
        return self.decay**i * (i + 1) ** -self.zipf

    def _root_probabilities(self) -> Float[Tensor, " roots"]:
        profile = self._profile()
        total = float(profile.sum()) if self.rescale else self.num_roots
        return profile * self.active / total

    @cached_property
    def _cholesky(self) -> Float[Tensor, "roots roots"]:
        return torch.linalg.cholesky(self.covariance)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(self.seed, purpose))


def seed_of(*parts: object) -> int:
    """A seed that changes when any of the parts does."""
    return int(content_key({"parts": list(parts)}), 16) >> 1
