"""What evaluations get and give: a context in, a typed result out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from sae.activations.counted import Counted
from sae.activations.rows import Rows
from sae.activations.store import ActivationStore
from sae.checksums import seal
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError, ConfigError
from sae.language.lm import LanguageModel
from sae.metrics.bootstrap import Interval
from sae.provenance import provenance, write_json
from sae.registry import Registry
from sae.settings import Settings, setting
from sae.synthetic import World
from sae.types import Ends, Point


@runtime_checkable
class SplicedLM(Protocol):
    """An LM whose activations can be replaced; a `LanguageModel` is one."""

    identity: Any
    """What decides its predictions; a JSON-able mapping."""

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def logits(
        self,
        tokens: Int[Tensor, "batch ctx"],
        replace: Mapping[Point, Callable[[Tensor], Tensor]] | None = None,
    ) -> Float[Tensor, "batch ctx vocab"]:
        """Logits, with what `replace` returns in place of the activations at its points."""
        ...

    def logits_under(
        self,
        tokens: Int[Tensor, "batch ctx"],
        conditions: Sequence[Mapping[Point, Callable[[Tensor], Tensor]]],
    ) -> Iterator[Tensor]:
        """`logits` under each of several sets of replacements, one after the other."""
        ...


@dataclass
class EvalContext:
    """Everything that evaluations may read, about one SAE and one split.

    Args:
        sae: What is evaluated, on the device to use.
        point: Where in the LM it belongs; None for activations that come from no known LM, and
            for transcoders and crosscoders, which have `ends`.
        rows: Activations of the split there: the rows that count.
        store: The split's tokens; None for activations without tokens.
        load_lm: Gives the LM when an evaluation needs it; None where there is none. Called once.
        world: The known features that the activations are made of; None where nobody knows them.
        ends: Where it reads and writes; follows from `point` where there is one.
        counted: Which rows count; None: all.
    """

    sae: SAE
    point: Point | None
    rows: Rows
    store: ActivationStore | None = None
    load_lm: Callable[[], LanguageModel] | None = None
    world: World | None = None
    ends: Ends | None = None
    counted: Counted | None = None

    def __post_init__(self) -> None:
        if self.ends is None and self.point is not None:
            self.ends = Ends.at(self.point)
        width = self.sae.d_in + (self.sae.config.d_out or 0)
        if width != self.rows.d_in:
            where = "" if self.ends is None else f" at {self.ends}"
            raise ConfigError(
                f"The SAE takes vectors of width {width}, the activations{where} "
                f"have width {self.rows.d_in}. Give the LM, layer and site it was trained on."
            )

    @cached_property
    def lm(self) -> LanguageModel:
        """The LM, loaded on first use."""
        if self.load_lm is None:
            raise ConfigError("This evaluation needs an LM, and none was given. Set lm=.")
        return self.load_lm()


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class EvalResult:
    """Metrics of one evaluation, with what a reader needs to judge them.

    Attributes:
        eval: Word of the evaluation.
        metrics: Estimates by name.
        tokens: How much each group of metrics was computed on, by unit.
        details: What does not fit a number, for example histograms. Plain JSON values.
        settings: Settings of the evaluation.
        provenance: Versions, machine, SAE, text.
    """

    eval: str
    metrics: dict[str, Estimate]
    tokens: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; undefined numbers are null, never NaN."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "EvalResult":
        """Undo `to_json`; a checksum, which `save` adds, is left to who reads the file.

        Raises:
            ArtifactError: If `content` is no evaluation result.
        """
        try:
            estimates = {name: Estimate(**entry) for name, entry in content["metrics"].items()}
            known = {name: value for name, value in content.items() if name != "checksum"}
            return cls(**{**known, "metrics": estimates})
        except (TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"This is no evaluation result ({error!r}).") from error

    def save(self, path: Path) -> None:
        """Write as JSON with a checksum; a reader sees the old file or the new one."""
        write_json(path, seal(self.to_json()))


class Bootstrap(Settings):
    """How intervals are made."""

    where = "bootstrap."

    num_resamples: int = setting(1000, ge=1, help="resamples of the documents")
    seed: int = setting(0, ge=0, help="decides the resamples")
    level: float = setting(0.95, gt=0, lt=1, help="share of the resamples that an interval holds")


class Evaluation(Settings, ABC):
    """Base of all evaluations: an evaluation is its settings and the way to measure."""

    name: ClassVar[str]
    """Its name in `eval=`."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Requirements: `tokens` (the text behind the activations, and so an LM), `truth` (known
    features, `EvalContext.world`). Sources that offer less leave the evaluation out."""
    joined: ClassVar[bool] = False
    """Whether it also measures transcoders and crosscoders, by `EvalContext.ends`; the others are
    left out for them."""

    @abstractmethod
    def run(self, context: EvalContext) -> EvalResult:
        """Measure."""


class Resampled(Evaluation):
    """Base of the evaluations that give intervals."""

    resamples: int | None = Field(
        None, ge=1, exclude=True, description="short for bootstrap.num_resamples"
    )
    bootstrap: Bootstrap = setting(Bootstrap(), help="how intervals are made")

    @model_validator(mode="after")
    def _short(self) -> "Resampled":
        if self.resamples is not None:
            changed = self.bootstrap.model_copy(update={"num_resamples": self.resamples})
            object.__setattr__(self, "bootstrap", changed)
        return self


EVALS: Registry[type[Evaluation]] = Registry("eval", "name")
"""Evaluations by the name that `eval=` takes."""

E = TypeVar("E")


def register(cls: E) -> E:
    """Make an evaluation known by its `name`."""
    kind: Any = cls
    kind.where = f"eval.{kind.name}."
    return EVALS.register(kind.name)(kind)


def estimates(
    values: Mapping[str, float | None], intervals: Mapping[str, Interval | None]
) -> dict[str, Estimate]:
    """Join values and intervals by name; numbers that are not finite become None.

    Example:
        >>> estimates({"a": 1.0, "b": float("nan")}, {"a": (0.5, 1.5)})["b"]
        Estimate(value=None, low=None, high=None)
    """
    joined = {}
    for name, value in values.items():
        defined = value is not None and math.isfinite(value)
        interval = intervals.get(name) if defined else None
        joined[name] = Estimate(value if defined else None, *(interval or ()))
    return joined


def check(context: EvalContext, word: str) -> None:
    """Refuse an SAE whose output stands at another place than its input."""
    if context.sae.config.d_out not in (None, context.sae.d_in) or context.sae.W_skip is not None:
        raise ConfigError(
            f"eval={word} takes latents out of the activation that the SAE reads; a transcoder "
            "writes to another one. Choose other evaluations."
        )


def describe(context: EvalContext) -> dict[str, Any]:
    """Provenance of a result: versions and machine, the SAE, the point, the text, the dtypes."""
    store = context.store
    lm = context.__dict__.get("lm")  # loaded only by evaluations that need it
    return provenance() | {
        "sae": {**asdict(context.sae.config), "metadata": context.sae.metadata},
        "point": None if context.ends is None else str(context.ends),
        "store": None if store is None else asdict(store.spec),
        "counted": None if context.counted is None else context.counted.to_json(),
        "dtypes": {"sae": _word(context.sae.dtype), "lm": None if lm is None else _word(lm.dtype)},
        **({} if context.world is None else {"world": context.world.to_config()}),
    }


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
