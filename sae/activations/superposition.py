"""Activations of a synthetic world, drawn chunk by chunk whenever they are read."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.counted import Counted, RowRule
from sae.activations.counted_rows import count_rows, counted_of
from sae.activations.rows import ROWS_PER_CHUNK, EvenRows, Rows
from sae.activations.stats import Stats, all_finite
from sae.cached import cached_json
from sae.errors import ConfigError
from sae.provenance import cache_dir, content_key
from sae.synthetic import Sample, World, seed_of
from sae.types import SPLITS, Split


class SuperpositionRows(EvenRows):
    """One split: `Rows`. Chunk `i` follows from (world, split, i) alone, so it is never kept.

    Args:
        world: The world that the vectors are drawn from.
        split: The split.
        num_rows: Number of vectors; a larger number keeps the first ones as they are.
    """

    def __init__(self, world: World, split: Split, num_rows: int):
        super().__init__(num_rows, world.d_in, f"measure {split} vectors")
        self.world, self.split_name = world, split

    def find_stats(self) -> Stats:
        """Statistics: measured at the first use by any run, then read from the cache."""
        identity = {"world": self.world.to_config(), "split": self.split_name}
        key = content_key({**identity, "num_rows": self.num_rows})
        file = cache_dir() / "superposition" / f"{key}.json"
        found = cached_json(file, lambda: {"stats": self.measure().to_json()})
        return Stats.from_json(found["stats"])

    def check(self, i: int, rows: Float[Tensor, "rows d_in"]) -> None:
        """Raise ConfigError if a value of chunk `i` is not finite in float32."""
        if not all_finite(rows):
            raise ConfigError(
                f"activations.noise={self.world.noise:g} gives values that float32 cannot hold. "
                "Use less."
            )

    def sample(self, i: int) -> Sample:
        """Chunk `i` with its ground truth."""
        start, stop = self.chunk_bounds(i)
        seed = seed_of(self.world.seed, self.split_name, i)
        drawn = self.world.draw(ROWS_PER_CHUNK, torch.Generator().manual_seed(seed))
        return Sample(*(part[: stop - start] for part in drawn))

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i`, float32."""
        return self.sample(i).x

    def documents(self, i: int) -> Int[np.ndarray, " rows"]:
        """Units that intervals resample: vectors, or whole chunks where these share a draw of g."""
        start, stop = self.chunk_bounds(i)
        if self.world.branch == "correlated" and self.world.correlation_per == "batch":
            return np.full(stop - start, i)
        return np.arange(start, stop)


class SuperpositionActivations:
    """A source of vectors with known features.

    Args:
        world: The world that the vectors are drawn from.
        tokens: Training vectors.
        val_tokens: Validation vectors.
        test_tokens: Test vectors.
        max_norm: Vectors whose norm is above so many medians do not count; None: all do.
        norm_limits: The largest norm that counts, as an SAE's metadata have it.
    """

    def __init__(
        self, world: World, *, tokens: int, val_tokens: int, test_tokens: int,
        max_norm: float | None = 10.0, norm_limits: Mapping[str, float | None] | None = None,
    ):  # fmt: skip
        self.world, self.rule = world, RowRule("keep", max_norm)
        self._norm_limits = norm_limits
        self.num_rows: dict[Split, int] = {
            "train": tokens, "val": val_tokens, "test": test_tokens
        }  # fmt: skip
        if min(self.num_rows.values()) < 1:
            raise ConfigError(f"tokens={self.num_rows}: give every split at least 1 vector.")
        self.d_in = world.d_in
        self._splits = {
            split: SuperpositionRows(world, split, count) for split, count in self.num_rows.items()
        }

    def prepare(self, splits: Sequence[str] = SPLITS) -> None:
        """Measure, unless the cache knows this world.

        Args:
            splits: Splits to prepare.
        """
        for name, rows in self._splits.items():
            if name in splits:
                assert rows.stats

    def split(self, name: Split) -> Rows:
        """The rows of one split that count."""
        return count_rows(self._splits[name], self.counted)

    @cached_property
    def counted(self) -> Counted:
        """Rows that count."""
        return counted_of(self._splits["train"], self.rule, self._norm_limits)

    def describe(self) -> dict[str, object]:
        """Provenance: what a saved SAE needs to draw these vectors again."""
        identity = {"world": self.world.to_config(), "tokens": dict(self.num_rows)}
        key = content_key(identity | self.rule.identity())
        max_norm = self.rule.max_norm
        return {"key": key, "kind": "superposition", **identity, "max_norm": max_norm}
