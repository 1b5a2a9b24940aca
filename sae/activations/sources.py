"""Sources of activations of a data module: an LM by way of the cache, or your own class."""

import math
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sae.activations.cache import StoredDtype, StoreSpec
from sae.activations.counted import Counted, RowRule, Special, limits_from_json
from sae.activations.counted_rows import count_rows, median_norm
from sae.activations.harvest import LoadsLM, harvest
from sae.activations.rows import JoinedRows, Rows, TokenRows
from sae.activations.store import ActivationStore
from sae.cached import cached_json
from sae.errors import ConfigError, StoreError
from sae.language.corpus import Corpus
from sae.language.lm import LanguageModel
from sae.language.text import Tokenizer, special_ids
from sae.provenance import content_key
from sae.types import SPLITS, Ends, Point, Split


@runtime_checkable
class ActivationSource(Protocol):
    """Three splits of activations, for example `LMActivations` or `FolderActivations`."""

    def prepare(self) -> None:
        """Make the splits readable: harvest, download, measure. Does nothing the second time."""
        ...

    def split(self, name: Split) -> Rows:
        """The rows of one split."""
        ...

    def describe(self) -> Mapping[str, object]:
        """JSON-able provenance. Its `key` changes whenever the rows or their order do."""
        ...


class LMActivations:
    """Activations of an LM over a text, harvested into the cache.

    Args:
        source: Source of the LM.
        corpus: The text.
        where: The point whose activations the rows hold, or the ends of a transcoder or
            crosscoder: then a row concatenates the activations of all its points.
        tokens: LM tokens harvested for training.
        val_tokens: LM tokens harvested for validation.
        test_tokens: LM tokens harvested for testing.
        ctx: Tokens in a context.
        dtype: Dtype that activations are stored in.
        seed: Decides splits and the order of documents.
        val_fraction: Share of documents held out for validation.
        test_fraction: Share of documents held out for testing.
        keep_first: Keep position 0 of each context.
        special: Special tokens whose rows do not count (`sae.activations.counted.RowRule`).
        max_norm: Rows whose norm is above so many medians do not count; None: all do.
        norm_limits: Largest norms that count, by point, as an SAE's metadata have them; None: they
            follow from `max_norm`.
        median_of: The split whose median norms `max_norm` multiplies.
        batch_contexts: Contexts handed to the LM at once.
        device: Device of the LM.
    """

    def __init__(
        self,
        source: LoadsLM,
        corpus: Corpus,
        where: Point | Ends,
        *,
        tokens: int,
        val_tokens: int,
        test_tokens: int,
        ctx: int = 128,
        dtype: StoredDtype = "bfloat16",
        seed: int = 0,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        keep_first: bool = False,
        special: Special = "drop",
        max_norm: float | None = 10.0,
        norm_limits: Mapping[str, float | None] | None = None,
        median_of: Split = "train",
        batch_contexts: int = 32,
        device: str = "cpu",
    ):
        if batch_contexts < 1:
            raise ConfigError(f"batch_contexts={batch_contexts} must be at least 1.")
        self.source, self.corpus = source, corpus
        self.ends = Ends.at(where) if isinstance(where, Point) else where
        self.batch_contexts, self.device = batch_contexts, device
        self.rule = RowRule(special, max_norm)
        self.median_of: Split = median_of
        self._norm_limits = norm_limits
        counts: dict[Split, int] = {"train": tokens, "val": val_tokens, "test": test_tokens}
        self.specs = {
            split: StoreSpec(
                lm=source.identity(),
                corpus=corpus.identity(),
                split=split,
                ctx=ctx,
                tokens=count,
                dtype=dtype,
                seed=seed,
                val_fraction=val_fraction,
                test_fraction=test_fraction,
                keep_first=keep_first,
            )
            for split, count in counts.items()
        }

    def prepare(self, also: Sequence[Point] = (), splits: Sequence[str] = SPLITS) -> None:
        """Harvest what is missing, all points in one LM pass for each split.

        Args:
            also: Further points to harvest on the way, for example the other layers of a sweep.
            splits: Splits to prepare; the text may be too short for the others.
        """
        source = LoadedOnce(self.source)
        for name, spec in self.specs.items():
            if name not in splits:
                continue
            harvest(
                spec,
                [*self.ends.points, *also],
                source=source,
                corpus=self.corpus,
                batch_contexts=self.batch_contexts,
                device=self.device,
            )

    def require_predictions(self) -> None:
        """Refuse contexts too short for a prediction that counts.

        Raises:
            ConfigError: If they are.
        """
        spec = self.specs["test"]
        if spec.rows_per_context < 2:
            raise ConfigError(
                f"activations.ctx={spec.ctx} leaves no prediction that counts: that of position 0 "
                "does not, and the last position has no next token. Use ctx=3 or more, or measure "
                "without the LM: 'eval=[core]' '~callbacks.downstream'."
            )

    def load_lm(self, device: str) -> LanguageModel:
        """The LM, for measuring its predictions."""
        return self.source.load(device)

    def store(self, split: Split) -> ActivationStore:
        """The store of a split, with its tokens."""
        return ActivationStore.open(self.specs[split])

    def split(self, name: Split) -> Rows:
        """The rows of one split that count.

        Raises:
            StoreError: If they are not harvested yet.
        """
        rows = joined(self._stored(name))
        if self.rule.every_row:
            return rows
        return count_rows(rows, self.counted, self._kept_in(name))

    @cached_property
    def counted(self) -> Counted:
        """Rows that count. The limits are measured here, on the split `median_of`."""
        points, ids = self.ends.points, self._special_ids()
        if self._norm_limits is not None:
            limits = limits_from_json(self._norm_limits)
        elif self.rule.max_norm is None:
            limits = {str(point): math.inf for point in points}
        else:
            limits = {str(point): self.rule.limit(self._median(point, ids)) for point in points}
        return Counted(self.rule, ids, limits, self.median_of).at(points)

    def _special_ids(self) -> tuple[int, ...]:
        word = self.rule.special
        if word == "keep":
            return ()

        def make() -> dict[str, Any]:
            return {"ids": special_ids(self.source.load_tokenizer(), every=word == "all")}

        there = [spec.folder for spec in self.specs.values() if spec.folder.exists()]
        file = there[0] / f"special-{word}.json" if there else None
        return tuple(cached_json(file, make)["ids"])

    def _median(self, point: Point, ids: tuple[int, ...]) -> float:
        rows = self._stored(self.median_of)[self.ends.points.index(point)]
        return median_norm(rows, ids, range(rows.num_chunks), self._kept_in(self.median_of, point))

    def _kept_in(self, name: Split, point: Point | None = None) -> Path:
        """Folder of counts and medians: beside the array, so that they go with it."""
        return self.store(name).folder_of(point or self.ends.points[0])

    def _stored(self, name: Split) -> Sequence[TokenRows]:
        try:
            store = self.store(name)
            return [store.rows(point) for point in self.ends.points]
        except StoreError as error:
            if not self.is_cached(name):
                raise StoreError(
                    f"The {name} activations of {self.ends} are not harvested yet. "
                    "Call prepare() (of the data module: prepare_data()) first."
                ) from error
            raise

    def describe(self) -> dict[str, object]:
        """Provenance: what a saved SAE needs to read these activations again."""
        train = self.specs["train"]
        stores = {split: spec.key for split, spec in self.specs.items()}
        identity = {"stores": stores, "point": str(self.ends)} | self.rule.identity()
        return {
            "key": content_key(identity),
            "kind": "lm",
            "lm": self.source.to_config(),
            "corpus": self.corpus.to_config(),
            "point": str(self.ends),
            "ctx": train.ctx,
            "tokens": {split: spec.tokens for split, spec in self.specs.items()},
            "dtype": train.dtype,
            "seed": train.seed,
            "val_fraction": train.val_fraction,
            "test_fraction": train.test_fraction,
            "keep_first": train.keep_first,
            "special": self.rule.special,
            "max_norm": self.rule.max_norm,
            "stores": stores,
            "identities": {"lm": content_key(train.lm), "corpus": content_key(train.corpus)},
        }

    def is_cached(self, name: Split) -> bool:
        """True if the activations of a split are there, so that no LM has to run."""
        folder = self.specs[name].folder
        published = [folder / "activations" / str(point) for point in self.ends.points]
        files = [path / "metadata.json" for path in (folder, *published)]
        return all(file.exists() for file in files)


def joined(parts: Sequence[TokenRows]) -> TokenRows:
    """Rows of several points side by side; those of one point as they are."""
    return JoinedRows(parts) if len(parts) > 1 else parts[0]


class LoadedOnce:
    """A source that loads its LM and tokenizer at most once and shares them."""

    def __init__(self, source: LoadsLM):
        self.name, self.identity, self.to_config = source.name, source.identity, source.to_config
        self._load = cache(source.load)
        self._load_tokenizer = cache(source.load_tokenizer)

    def load(self, device: str = "cpu") -> LanguageModel:
        """The LM, the same at every call."""
        return self._load(device)

    def load_tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self._load_tokenizer()
