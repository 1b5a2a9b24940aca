"""Evaluations: settings and a way to measure placed SAEs; the base adds the rest of a result."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator

from sae.artifacts.placed import PlacedSAE
from sae.checksums import seal
from sae.errors import ArtifactError, ConfigError
from sae.metrics.bootstrap import Bootstrap, Interval
from sae.metrics.classification import interval
from sae.provenance import provenance, write_json
from sae.registry import Registry
from sae.settings import Settings, setting
from sae.tables import Table
from sae.types import Split

PLACING = ("lm", "corpus", "layer", "site", "target", "ctx", "tokens")
"""Settings of evaluate.py that choose other activations than those of the training."""


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval; None where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Measured:
    """Numbers that an evaluation found.

    Attributes:
        metrics: Estimates by name.
        tokens: Size of the sample behind each group of metrics, by unit.
        details: Further plain JSON values, for example histograms.
        tables: Tables by name: a row per latent, prompt or pair.
        on: The split, where it is another one than was asked for.
    """

    metrics: dict[str, Estimate]
    tokens: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    on: Split | None = None


@dataclass(frozen=True)
class EvalResult:
    """Metrics of one evaluation, with settings and provenance to judge them by.

    Attributes:
        eval: Name of the evaluation.
        metrics: See `Measured`.
        tokens: See `Measured`.
        details: See `Measured`.
        settings: Settings of the evaluation.
        provenance: Versions, machine, SAE, text.
        tables: See `Measured`.
    """

    eval: str
    metrics: dict[str, Estimate]
    tokens: dict[str, int]
    details: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values; undefined numbers are null, never NaN. Tables are given by their schema."""
        content = asdict(replace(self, tables={}))
        content["tables"] = {name: table.schema() for name, table in self.tables.items()}
        return content if self.tables else {n: v for n, v in content.items() if n != "tables"}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "EvalResult":
        """Undo `to_json`, without tables; a checksum, which `save` adds, is not looked at.

        Raises:
            ArtifactError: If `content` is not an evaluation result.
        """
        try:
            estimates = {name: Estimate(**entry) for name, entry in content["metrics"].items()}
            known = {n: value for n, value in content.items() if n not in ("checksum", "tables")}
            return cls(**{**known, "metrics": estimates})
        except (TypeError, KeyError, AttributeError) as error:
            raise ArtifactError(f"This is not the result of an evaluation ({error!r}).") from error

    def with_tables(self, folder: Path, stem: str | None = None) -> dict[str, Any]:
        """`to_json`, with each table written to `<stem>.<table>.parquet` in a folder.

        Args:
            folder: It need not exist.
            stem: Default: the evaluation's name.
        """
        content = self.to_json()
        for name, table in self.tables.items():
            folder.mkdir(parents=True, exist_ok=True)
            file = f"{stem or self.eval}.{name}.parquet"
            table.save(folder / file)
            content["tables"][name]["file"] = file
        return content

    def save(self, path: Path) -> None:
        """Write as JSON with a checksum, tables beside it; a reader sees old files or new ones."""
        write_json(path, seal(self.with_tables(path.parent, path.name.removesuffix(".json"))))


class Evaluation(Settings, ABC):
    """Base of all evaluations: an evaluation is its settings and `measure`."""

    name: ClassVar[str]
    """Its name in `eval=`."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Requirements: `tokens` (the text behind the activations, and so an LM), `predictions` (of
    that LM), `truth` (known features, `PlacedSAE.world`). Sources that offer less leave the
    evaluation out."""
    joined: ClassVar[bool] = False
    """True if it also measures transcoders and crosscoders, by `PlacedSAE.ends`; the others are
    left out for them."""
    takes: ClassVar[Literal["one", "several", "both"]] = "one"
    """Number of SAEs that a call of `measure` takes: one; all that are given; or one, and with
    `together=true` all, which are then spliced in at once."""
    least: ClassVar[int] = 1
    """Smallest number of SAEs that it measures."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Settings of evaluate.py that have no effect on it."""
    unfinished: ClassVar[bool] = False
    """True if it also takes runs that are not finished."""

    @abstractmethod
    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure SAEs on a split of their sources.

        Args:
            subjects: SAEs at their places; see `takes`.
            on: The split.
        """

    def run(self, subjects: PlacedSAE | Sequence[PlacedSAE], on: Split = "test") -> EvalResult:
        """Measure, and add settings and provenance.

        Args:
            subjects: One SAE or several; see `takes`.
            on: The split.

        Raises:
            ConfigError: If there are too few or too many SAEs, or one does not fit.
        """
        subjects = [subjects] if isinstance(subjects, PlacedSAE) else subjects
        most = 1 if self.takes == "one" else len(subjects)
        if not self.least <= len(subjects) <= most:
            allowed = f"at least {self.least}" if self.takes == "several" else "1"
            raise ConfigError(
                f"eval=[{self.name}] was given {len(subjects)} SAE(s), and takes {allowed}: "
                f"python evaluate.py 'run=[a,b]' 'eval=[{self.name}]'."
            )
        measured = self.measure(subjects, on)
        return EvalResult(
            eval=self.name,
            metrics=measured.metrics,
            tokens=measured.tokens,
            details=measured.details,
            settings=self.model_dump(mode="json"),
            provenance=self.describe(subjects, measured.on or on),
            tables=measured.tables,
        )

    def describe(self, subjects: Sequence[PlacedSAE], on: Split) -> dict[str, Any]:
        """Provenance of a result: the first SAE, and with several the points and SAEs of all."""
        described = [describe(subject, on) for subject in subjects]
        together = [{key: one[key] for key in ("point", "sae")} for one in described]
        return described[0] | ({"together": together} if len(subjects) > 1 else {})

    def check_ctx(self, ctx: int) -> None:
        """Refuse settings that contexts of `ctx` tokens cannot serve.

        Raises:
            ConfigError: If there are such settings.
        """

    @classmethod
    def expanded(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with abbreviations written out, so that nodes of two origins can be merged."""
        return dict(settings)


class Resampled(Evaluation):
    """Base of the evaluations that give intervals."""

    resamples: int | None = Field(
        None, ge=1, exclude=True, description="short for bootstrap.num_resamples"
    )
    bootstrap: Bootstrap = setting(Bootstrap(), help="how intervals are made")

    @model_validator(mode="after")
    def _short(self) -> "Resampled":
        if self.resamples is not None:
            written = self.bootstrap.num_resamples
            if "num_resamples" in self.bootstrap.model_fields_set and written != self.resamples:
                raise ConfigError(
                    f"{self.where}resamples={self.resamples} and {self.where}bootstrap."
                    f"num_resamples={written} are the same setting. Give one of them."
                )
            changed = self.bootstrap.model_copy(update={"num_resamples": self.resamples})
            object.__setattr__(self, "bootstrap", changed)
        return self

    @classmethod
    def expanded(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`resamples` written as `bootstrap.num_resamples`."""
        found = {name: value for name, value in settings.items() if name != "resamples"}
        if (resamples := settings.get("resamples")) is not None:
            found["bootstrap"] = {**(found.get("bootstrap") or {}), "num_resamples": resamples}
        return found


EVALS: Registry[type[Evaluation]] = Registry("eval", "name", package="sae.evals")
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


def sampled(samples: Mapping[str, np.ndarray], level: float) -> dict[str, Estimate]:
    """Estimates of bootstrap draws [draws], the first of which holds every example once."""
    return estimates(
        {name: float(values[0]) for name, values in samples.items()},
        {name: interval(values, level) for name, values in samples.items() if len(values) > 1},
    )


def refuse_transcoder(sae: PlacedSAE, name: str) -> None:
    """Raise ConfigError for an SAE whose output stands at another place than its input."""
    if sae.sae.config.d_out not in (None, sae.sae.d_in) or sae.sae.W_skip is not None:
        raise ConfigError(
            f"eval={name} takes latents out of the activation that the SAE reads; a transcoder "
            "writes to another one. Choose other evaluations."
        )


def describe(placed: PlacedSAE, on: Split) -> dict[str, Any]:
    """Provenance: versions and machine, the SAE, the point, the text, the dtypes."""
    store = placed.store(on)
    lm = placed.__dict__.get("lm")  # loaded only by evaluations that need it
    return provenance() | {
        "sae": {**asdict(placed.sae.config), "metadata": placed.sae.metadata},
        "point": None if placed.ends is None else str(placed.ends),
        "store": None if store is None else asdict(store.spec),
        "counted": None if placed.counted is None else placed.counted.to_json(),
        "dtypes": {"sae": _word(placed.sae.dtype), "lm": None if lm is None else _word(lm.dtype)},
        **({} if placed.world is None else {"world": placed.world.to_config()}),
    }


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
