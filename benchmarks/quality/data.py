"""The vectors that everybody trains on: superposition with known features, or an LM's activations.

Each data set of each length is a folder of two files, training rows and held-out rows, in the
LM's own units. Everybody reads it through this project's data module, so that all see the same
batches in the same order and scale (`activations.normalize`).

Only rows that count are in it (docs/reference/metrics.md): at layer 15 of the default LM 0.17 %
of the rows
hold 97 % of the variance, all in one direction, and FVU would only say how well a dictionary hits
those.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.runs import configuration, prepared_data
from sae.activations.counted import RowRule
from sae.activations.from_config import build_source
from sae.activations.rows import Rows
from sae.activations.sources import LMActivations
from sae.provenance import content_key
from sae.synthetic import World
from sae.types import Split

SYNTHETIC = "synthetic"
BUFFER_ROWS = 65_536
WORLD_SEED = 20_230_915
_BLOCK = 16_384


@dataclass(frozen=True)
class Size:
    """How much of a data set.

    Attributes:
        vectors: Training vectors, each seen once.
        val: Held-out vectors for tuning.
        test: Held-out vectors for what is reported.
        batch: Vectors in a step, the same for everybody.
    """

    vectors: int
    val: int
    test: int
    batch: int


def problem_a() -> World:
    """The world of the synthetic data set: correlated, heavy-tailed, with parents and children.

    Its seed is that of no training: initial weights may be drawn just like its directions.
    """
    return World(
        d_in=128, num_features=512, active=6.0, decay=1.0, zipf=1.0, rescale=True,
        branch="correlated", hierarchy=0.25, noise=0.03, seed=WORLD_SEED,
    )  # fmt: skip


@dataclass(frozen=True)
class Data:
    """A prepared data set: a folder, and what is known about it.

    Attributes:
        folder: Rows in `rows/`.
        name: `synthetic` or a point such as `resid.4`.
        size: How much.
    """

    folder: Path
    name: str
    size: Size

    def overrides(self) -> list[str]:
        """How this project's `train.py` is told to read it."""
        size = self.size
        rows = size.vectors + size.val + size.test
        return [
            "activations=folder", f"activations.path={self.folder / 'rows'}",
            f"activations.val_fraction={size.val / rows!r}",
            f"activations.test_fraction={size.test / rows!r}", "activations.max_norm=null",
            f"activations.buffer_rows={BUFFER_ROWS}", f"trainer.batch_size={size.batch}",
            "epochs=1",
        ]  # fmt: skip

    @cached_property
    def module(self) -> Any:
        """This project's data module over it."""
        return prepared_data(configuration(self.overrides(), quick=False))

    @property
    def d_in(self) -> int:
        """Width."""
        return self.module.d_in

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.module.steps

    @property
    def scale(self) -> float:
        """Factor that the training batches were multiplied with."""
        return self.module.scale

    def batches(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Training batches in the seeded order, scaled."""
        return iter(self.module.train_dataloader())

    def held_out(self, split: Split) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Rows of a split in the LM's own units."""
        rows = self.module.rows(split)
        for i in range(rows.num_chunks):
            yield rows.read(i).float()

    def features(self) -> Float[Tensor, "num_features d_in"] | None:
        """The true directions, where they are known."""
        file = self.folder / "features.npy"
        return torch.from_numpy(np.load(file)) if file.exists() else None


@cache
def prepare(name: str, size: Size, work: Path) -> Data:
    """Write the rows unless they are there; the same arguments give the same rows."""
    identity = {"name": name, **asdict(size)}
    if name == SYNTHETIC:
        identity["world"] = problem_a().to_config()
    else:
        identity["rows"] = str(RowRule())
    folder = work / "data" / f"{name}-{content_key(identity)}"
    data = Data(folder, name, size)
    if not (folder / "identity.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "rows").mkdir(parents=True)
        if name == SYNTHETIC:
            _write_synthetic(problem_a(), size, folder)
        else:
            _write_harvested(name, size, folder)
        (folder / "identity.json").write_text(json.dumps(identity))
    assert data.scale  # measured here once, so that no two processes measure at the same time
    return data


def lm_source(point: str) -> LMActivations:
    """The default LM and text at a point, with 1 M training tokens as harvested by default."""
    site, layer = point.split(".")
    config = configuration([f"site={site}", f"layer={layer}"], quick=False)
    source = build_source(config["activations"], config["lm"], config["corpus"], "cpu")
    assert isinstance(source, LMActivations)
    return source


def _write_synthetic(world: World, size: Size, folder: Path) -> None:
    np.save(folder / "features.npy", world.features.numpy())
    np.save(folder / "rows/0-train.npy", _vectors(world, size.vectors, 1))
    held = [_vectors(world, size.val, 2), _vectors(world, size.test, 3)]
    np.save(folder / "rows/1-held-out.npy", np.concatenate(held))


def _vectors(world: World, n: int, seed: int) -> np.ndarray:
    """Vectors in blocks, each with a seed of its own; codes are as wide as there are features."""
    blocks = [min(_BLOCK, n - start) for start in range(0, n, _BLOCK)]
    drawn = [world.sample(rows, 10_000 * seed + i)[1] for i, rows in enumerate(blocks)]
    return torch.cat(drawn).numpy()


def _write_harvested(point: str, size: Size, folder: Path) -> None:
    source = lm_source(point)
    source.prepare()
    np.save(folder / "rows/0-train.npy", first_rows(source.split("train"), size.vectors))
    held = [first_rows(source.split("val"), size.val), first_rows(source.split("test"), size.test)]
    np.save(folder / "rows/1-held-out.npy", np.concatenate(held))


def first_rows(rows: Rows, n: int) -> Float[np.ndarray, "n d_in"]:
    """The first rows of a split.

    Raises:
        ValueError: If there are fewer than `n`.
    """
    if rows.num_rows < n:
        raise ValueError(f"{rows.num_rows:,} rows count, and {n:,} were asked for.")
    found, filled = np.empty((n, rows.d_in), dtype=np.float32), 0
    for i in range(rows.num_chunks):
        kept = rows.read(i)[: n - filled].float()
        found[filled : filled + len(kept)] = kept.numpy()
        filled += len(kept)
        if filled == n:
            break
    return found
