"""One SAE of a command: what follows from its configuration, the LM's and the cache's sizes."""

from functools import cached_property
from typing import Any

from sae.activations.cache import StoreSpec
from sae.activations.from_config import build_source
from sae.activations.rows import ROWS_PER_CHUNK
from sae.activations.sources import LMActivations
from sae.activations.store import ActivationStore
from sae.dictionaries.baselines import build_baseline
from sae.evals.core import CoreEval
from sae.evals.downstream import DownstreamEval
from sae.language.sizes import LMSizes
from sae.planning import costs
from sae.training.from_config import resolve_device
from sae.training.settings import TrainerSettings
from sae.types import Ends, Point

_EVALS: dict[str, Any] = {"core": CoreEval, "downstream": DownstreamEval}


class Unknown(Exception):
    """Raised by sizes of an LM that is not here yet."""


class Member:
    """One SAE: its configuration and what follows from it."""

    def __init__(self, config: dict[str, Any]):
        self.config, self.activations = config, config["activations"]
        self.trainer = TrainerSettings(**config["trainer"])
        self.device = resolve_device(self.trainer.accelerator)
        mixed = self.trainer.precision.startswith("bf16")
        self.dtype = "bfloat16" if mixed else "float32"
        self.stream = bool(self.activations.get("stream"))
        self.e2e = config.get("e2e") is not None
        self.source = build_source(self.activations, config["lm"], config["corpus"], self.device)
        self.specs = self.source.specs if isinstance(self.source, LMActivations) else {}
        if isinstance(self.source, LMActivations):
            spec = self.specs["train"]
            self.ends: Ends | None = self.source.ends
            self.rows = {split: costs.rows_of(spec) for split, spec in self.specs.items()}
            self.stored, self.ctx = spec.dtype, spec.ctx
            self.chunk_rows = spec.contexts_per_chunk * spec.rows_per_context
            self.lm_dtype = config["lm"].get("dtype", "float32")
        else:
            self.ends, self.rows = None, self.source.num_rows
            self.stored, self.ctx, self.chunk_rows = "float32", 0, ROWS_PER_CHUNK
        self.batch_size = self.trainer.batch_size
        self.steps = costs.train_steps(self.rows["train"], config["epochs"], self.batch_size)
        self.baseline = None
        if config["sae"].get("kind") == "baseline":
            self.baseline, self.steps = build_baseline(config["sae"]), 0

    @cached_property
    def sizes(self) -> LMSizes:
        """Sizes of the LM; an LM is required."""
        found = _sizes(self.source.source)  # pyright: ignore[reportAttributeAccessIssue]
        if found is None:
            raise Unknown
        for point in self.points:
            found.check(point)
        return found

    @property
    def points(self) -> tuple[Point, ...]:
        """Points where activations are read; none where there is no LM."""
        return () if self.ends is None else self.ends.points

    @cached_property
    def widths(self) -> list[int]:
        """Width of the activations at each point."""
        if not isinstance(self.source, LMActivations):
            return [self.source.d_in]
        spec = self.specs["train"]
        if set(self.points) <= set(points_in(spec)):
            return [ActivationStore.open(spec).rows(point).d_in for point in self.points]
        return [self.sizes.width(point) for point in self.points]

    @property
    def width(self) -> int:
        """Width of a training batch."""
        return sum(self.widths)

    @property
    def d_in(self) -> int:
        """Width of what is read and written: with a target, the mean of both."""
        pair = self.ends is not None and self.ends.pair
        return self.width // 2 if pair else self.width

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        num_layers = 1 if self.ends is None else len(self.ends.reads)
        d_layer = sum(self.widths[:num_layers]) / num_layers
        if self.baseline is not None:
            return self.baseline.latents(self.width)
        return max(1, round(self.config["sae"]["dict_ratio"] * d_layer))

    @cached_property
    def parameters(self) -> int:
        """Trained numbers."""
        if self.baseline is not None:
            return 2 * self.width * self.d_sae + self.d_sae + self.width
        if self.ends is not None and self.ends.pair:
            d_in, d_out = self.widths
            return costs.parameters(self.config["sae"], d_in=d_in, d_out=d_out)
        widths = self.widths if len(self.widths) > 1 else ()
        return costs.parameters(self.config["sae"], d_in=self.width, widths=widths)

    @property
    def measures_lm(self) -> bool:
        """True if training or evaluation splices into the LM."""
        words = [*self.config["eval"], *(self.config["callbacks"] if self.validations else [])]
        return self.ends is not None and "downstream" in words

    @property
    def validations(self) -> int:
        """Measurements during training."""
        return 0 if self.baseline is not None else self.trainer.validations

    @property
    def watched(self) -> dict[str, Any] | None:
        """Settings of the next-token metrics during training, where there are any."""
        there = self.validations and self.ends is not None
        return self.config["callbacks"].get("downstream") if there else None

    @property
    def sparse_k(self) -> int | None:
        """Latents that fire, where the code is sparse from the first step; else None."""
        return None if self.trainer.kernels == "dense" else self.config["sae"].get("k")

    def setting(self, word: str, name: str) -> int:
        """A setting of an evaluation, or its default."""
        default = _EVALS[word].model_fields[name].get_default()
        return self.config["eval"][word].get(name, default)

    def lm_memory(self, batch_contexts: int) -> dict[str, int]:
        """LM and logits of next-token metrics."""
        logits = costs.logits_memory(self.sizes.vocab_size, self.lm_dtype, self.ctx, batch_contexts)
        weights = self.sizes.parameters * costs.ITEMSIZE[self.lm_dtype]
        return {"LM": weights, "logits": logits}


_KNOWN: dict[Any, LMSizes | None] = {}


def _sizes(lm: Any) -> LMSizes | None:
    key = str(lm)
    if _KNOWN.get(key) is None:  # an LM may have been fetched meanwhile
        _KNOWN[key] = lm.sizes()
    return _KNOWN[key]


def points_in(spec: StoreSpec) -> list[Point]:
    """Points that the cache has of a store."""
    if not (spec.folder / "metadata.json").exists():
        return []
    return ActivationStore.open(spec).points()
