"""Base of all baselines: the class to derive from, the registry, conversion to an inference SAE.

A baseline reads the training vectors in the LM's own units and becomes an ordinary inference SAE,
so that every evaluation measures it as it measures any other dictionary.
"""

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, DegenerateInputError
from sae.registry import Registry
from sae.settings import Settings, setting

log = logging.getLogger(__name__)
Centre = Literal["none", "mean"]
Form = Literal["signed", "relu", "split"]


@runtime_checkable
class Vectors(Protocol):
    """The training vectors, in the LM's own units and float32."""

    @property
    def d_in(self) -> int:
        """Width of the vectors."""
        ...

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Mean of the vectors, float64 (of a streamed split: the mean of a sample)."""
        ...

    def chunks(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All vectors in stored order, chunk by chunk."""
        ...

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """Random rows, or all where there are fewer: the same for the same seed."""
        ...


class Learned(NamedTuple):
    """Findings of a fit: float64 tensors by name, and plain JSON values about the fit."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Baseline(Settings, ABC):
    """Base of all baselines: a baseline is its settings and the way to fit them."""

    where = "sae."
    word: ClassVar[str]
    free: ClassVar[frozenset[str]] = frozenset({"k", "split", "centre"})
    """Settings that `learn` does not look at: fits that differ only in them are made once."""
    costly: ClassVar[bool] = False
    """True if a fit takes so long that it is worth keeping."""

    k: int | None = setting(
        64, ge=1, help="latents that may fire for each vector, of the largest |f|; null: all"
    )

    @abstractmethod
    def latents(self, d_in: int) -> int:
        """Number of latents for activations of this width."""

    @abstractmethod
    def learn(self, x: Vectors) -> Learned:
        """Read the training vectors."""

    @abstractmethod
    def assemble(self, learned: Learned) -> SAE:
        """The inference SAE."""

    def check(self, d_in: int) -> None:
        """Refuse settings that do not fit the width of the activations, before any computation.

        Raises:
            ConfigError: If k exceeds the number of latents.
        """
        if self.k is not None and not 1 <= self.k <= self.latents(d_in):
            raise ConfigError(
                f"k={self.k} must be between 1 and the {self.latents(d_in)} latents that "
                f"sae={self.word} has on activations of width {d_in}; k=null lets all fire."
            )

    def fit(self, x: Vectors) -> SAE:
        """Learn and assemble."""
        self.check(x.d_in)
        return self.assemble(self.learn(x))

    def decides(self) -> dict[str, Any]:
        """Identity of the outcome of `learn`, beside the vectors."""
        settings = {
            name: value for name, value in self.model_dump().items() if name not in self.free
        }
        return {"baseline": self.word, **settings}

    def sae(self, rows: Tensor, encoder: Tensor, centre: Tensor, form: Form) -> SAE:
        """The SAE of a linear code (`linear_sae`), with this baseline's name and k."""
        return linear_sae(self.word, rows, encoder, centre, form, self.k)


def linear_sae(
    word: str,
    rows: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_in n"],
    centre: Float[Tensor, " d_in"],
    form: Form,
    k: int | None = None,
) -> SAE:
    """The SAE that codes `x - centre` by `encoder` and writes `rows`, plus the centre.

    Rows get length 1 and the code their lengths, so that |f| is the length of what a latent writes,
    in the LM's units: that is what the k largest are chosen by.

    Args:
        word: Name of the baseline.
        rows: Vectors that a code of 1 writes.
        encoder: Code = (x - centre) @ encoder.
        centre: Subtracted before and added after.
        form: `signed`: f as it is. `relu`: positive part. `split`: every latent twice, with both
            signs, and the positive part of each, which writes the same as `signed`.
        k: Keep the k largest |f|; None: all.
    """
    if form == "split":
        rows, encoder = torch.cat([rows, -rows]), torch.cat([encoder, -encoder], dim=1)
    activations = {"signed": ("identity", "abs_topk")}.get(form, ("relu", "topk"))
    W_dec, norms = unit_rows_and_norms(rows)
    W_enc = encoder.double() * norms
    return SAE(
        W_enc=W_enc.float().contiguous(),
        b_enc=-(centre.double() @ W_enc).float(),
        W_dec=W_dec.float().contiguous(),
        b_dec=centre.float(),
        config=SAEConfig(
            word, activations[k is not None], d_in=rows.shape[1], d_sae=rows.shape[0], k=k
        ),
    )


def check_sample(word: str, num_rows: int, latents: int) -> None:
    """Refuse fewer vectors than latents.

    Raises:
        DegenerateInputError: If there are fewer.
    """
    if num_rows < latents:
        raise DegenerateInputError(
            f"{num_rows} vectors are too few to fit the {latents} latents of sae={word}. Raise "
            "sae.sample_vectors, or harvest more tokens."
        )


def converges(estimator: Any, x: np.ndarray) -> bool:
    """Fit an estimator of scikit-learn; say, and warn, if its `max_iter` were too few."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(x)
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    if not converged:
        log.warning(
            "%s did not converge in %d iterations; sae.max_iter=… gives it more.",
            type(estimator).__name__, estimator.max_iter,
        )  # fmt: skip
    return converged


def unit_rows_and_norms(
    rows: Float[Tensor, "n d_in"],
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, " n"]]:
    """Rows of length 1 and the lengths they had, float64; a row of zeros becomes the first axis."""
    rows = rows.double()
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp_min(1e-300)[:, None]
    unit[norms == 0] = torch.eye(1, rows.shape[1], dtype=torch.float64)
    return unit, norms


class Centred(Baseline):
    """Baselines that may subtract the training mean before and add it after."""

    centre: Centre = setting(
        "none", help="mean subtracts the training mean before and adds it after"
    )

    def centre_of(self, mean: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
        """The vector to subtract."""
        return mean if self.centre == "mean" else torch.zeros_like(mean)


BASELINES: Registry[type[Baseline]] = Registry("sae.architecture", "word")
register = BASELINES.register
"""Make a baseline known as `sae.architecture=<name>`."""


def build_baseline(config: Mapping[str, Any]) -> Baseline:
    """The baseline that a configuration names.

    Args:
        config: `architecture` and its settings; those left out take their defaults.

    Raises:
        ConfigError: If the name or a setting is unknown, or a value is not allowed.
    """
    return BASELINES.build({name: value for name, value in config.items() if name != "kind"})
