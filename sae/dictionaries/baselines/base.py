"""What every baseline shares: the class to derive from, the registry, the way to an inference SAE.

A baseline reads the training vectors in the LM's own units and becomes an ordinary inference SAE,
so that every evaluation measures it as it measures any other dictionary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, DegenerateInputError

Centre = Literal["none", "mean"]
Form = Literal["signed", "relu", "split"]


@runtime_checkable
class Vectors(Protocol):
    """The training vectors, in the LM's own units and float32."""

    @property
    def d_in(self) -> int:
        """Their width."""
        ...

    @property
    def num_rows(self) -> int:
        """How many there are."""
        ...

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Their mean (of a streamed split: of a sample), float64."""
        ...

    def chunks(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All of them, once, in stored order."""
        ...

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """So many of them at random, or all where there are fewer: the same for the same seed."""
        ...


class Learned(NamedTuple):
    """What a fit found out: float64 tensors by name, and plain JSON values about the fit."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Baseline(ABC):
    """Base of all baselines; the fields of a subclass are its settings in conf/sae/<word>.yaml.

    Args:
        k: Latents that may fire for each vector, those with the largest |f|; None: all.
    """

    word: ClassVar[str]
    free: ClassVar[frozenset[str]] = frozenset({"k", "split", "centre"})
    """Settings that `learn` does not look at: fits that differ only in them are made once."""
    costly: ClassVar[bool] = False
    """Whether a fit takes so long that it is worth keeping."""

    k: int | None = None

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
        """Refuse what does not fit the width of the activations, before anything is computed.

        Raises:
            ConfigError: If more latents shall fire than there are.
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
        """What decides the outcome of `learn`, beside the vectors."""
        settings = {name: value for name, value in asdict(self).items() if name not in self.free}
        return {"baseline": self.word, **settings}

    def sae(self, rows: Tensor, encoder: Tensor, centre: Tensor, form: Form) -> SAE:
        """The SAE of a linear code, as `linear_sae`, with this word and k."""
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
        word: Word of the baseline.
        rows: What a code of 1 writes.
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
            f"{num_rows} vectors do not decide the {latents} latents of sae={word}. Raise "
            "sae.sample_vectors, or harvest more tokens."
        )


def unit_rows_and_norms(
    rows: Float[Tensor, "n d_in"],
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, " n"]]:
    """Rows of length 1 and the lengths they had, float64; a row of zeros becomes the first axis."""
    rows = rows.double()
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp_min(1e-300)[:, None]
    unit[norms == 0] = torch.eye(1, rows.shape[1], dtype=torch.float64)
    return unit, norms


@dataclass(frozen=True)
class Centred(Baseline):
    """Baselines that may subtract the training mean before and add it after.

    Args:
        centre: `mean` or `none`.
    """

    centre: Centre = field(default="none", kw_only=True)

    def centre_of(self, mean: Float[Tensor, " d_in"]) -> Float[Tensor, " d_in"]:
        """What to subtract."""
        return mean if self.centre == "mean" else torch.zeros_like(mean)


B = TypeVar("B", bound=type[Baseline])
BASELINES: dict[str, type[Baseline]] = {}


def register(word: str) -> Callable[[B], B]:
    """Make a baseline known as `sae.architecture=<word>`."""

    def enter(cls: B) -> B:
        cls.word = word
        BASELINES[word] = cls
        return cls

    return enter


def build_baseline(config: Mapping[str, Any]) -> Baseline:
    """The baseline that a configuration names.

    Args:
        config: `architecture` and its settings, as conf/sae/*.yaml has them.

    Raises:
        ConfigError: If the word or a setting is unknown, or a setting is missing.
    """
    settings = {name: value for name, value in config.items() if name != "kind"}
    word = settings.pop("architecture", None)
    if word not in BASELINES:
        raise ConfigError(
            f"sae.architecture={word!r} is no baseline. Choose one of {sorted(BASELINES)}."
        )
    known = [item.name for item in fields(BASELINES[word]) if item.init]
    if sorted(settings) != sorted(known):
        raise ConfigError(
            f"sae.architecture={word} was given {sorted(settings)}; it reads {sorted(known)}."
        )
    return BASELINES[word](**settings)
