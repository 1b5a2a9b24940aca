"""The vectors that everybody trains on: superposition with known features, or an LM's activations.

Each data set of each length is a folder of two files, training rows and held-out rows, in the
LM's own units. Everybody reads it through this project's data module, so that all see the same
batches in the same order, scaled so that the mean of ||x||^2 is d_in.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.runs import configuration, prepared_data
from sae.activations.build import build_source
from sae.activations.sources import LMActivations
from sae.provenance import content_key
from sae.types import Split

SYNTHETIC = "synthetic"
BUFFER_ROWS = 65_536
WORLD_SEED = 20_230_915


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


class SuperpositionWorld(Protocol):
    """What `sae.synthetic.World` offers."""

    features: Float[Tensor, "num_features d_in"]

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """Vectors, the same for the same seed."""
        ...


class StandInWorld:
    """Sparse sums of random directions: frequencies fall as a power law, groups fire together.

    Args:
        num_features: How many directions.
        d_in: In how many dimensions.
        l0: How many fire on average.
    """

    GROUP, TOGETHER, NOISE, EXPONENT = 4, 0.7, 0.05, 1.0

    def __init__(self, num_features: int, d_in: int, l0: float) -> None:
        # not a seed of any training: some initial weights are drawn just like these directions
        generator = torch.Generator().manual_seed(WORLD_SEED)
        drawn = torch.randn(num_features, d_in, generator=generator)
        self.features = torch.nn.functional.normalize(drawn, dim=1)
        weights = torch.arange(1, num_features // self.GROUP + 1).float() ** -self.EXPONENT
        self.frequency = (l0 / self.GROUP / self.TOGETHER * weights / weights.sum()).clamp(max=0.5)

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """Draw vectors."""
        generator = torch.Generator().manual_seed(WORLD_SEED + seed)
        found = []
        for start in range(0, n, 8192):
            rows = min(8192, n - start)
            group = torch.rand(rows, len(self.frequency), generator=generator) < self.frequency
            fires = group.repeat_interleave(self.GROUP, dim=1)
            fires &= torch.rand(fires.shape, generator=generator) < self.TOGETHER
            size = 0.5 + torch.empty(fires.shape).exponential_(generator=generator)
            noise = torch.randn(rows, self.features.shape[1], generator=generator)
            found.append((fires * size) @ self.features + self.NOISE * noise)
        return torch.cat(found)


def problem_a() -> SuperpositionWorld:
    """The world of the synthetic data set."""
    return StandInWorld(num_features=512, d_in=128, l0=16)


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
            f"activations.test_fraction={size.test / rows!r}",
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
        world = problem_a()
        identity["features"] = float(world.features.double().square().sum(0)[:8].sum())
        identity["world"] = type(world).__name__
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


def _write_synthetic(world: SuperpositionWorld, size: Size, folder: Path) -> None:
    np.save(folder / "features.npy", world.features.numpy())
    np.save(folder / "rows/0-train.npy", world.sample(size.vectors, 1).numpy())
    held = [world.sample(size.val, 2), world.sample(size.test, 3)]
    np.save(folder / "rows/1-held-out.npy", torch.cat(held).numpy())


def _write_harvested(point: str, size: Size, folder: Path) -> None:
    source = lm_source(point)
    source.prepare()
    np.save(folder / "rows/0-train.npy", _first_rows(source, "train", size.vectors))
    held = [_first_rows(source, "val", size.val), _first_rows(source, "test", size.test)]
    np.save(folder / "rows/1-held-out.npy", np.concatenate(held))


def _first_rows(source: LMActivations, split: Split, n: int) -> np.ndarray:
    rows = source.split(split)
    if rows.num_rows < n:
        raise ValueError(f"{split} holds {rows.num_rows:,} rows, and {n:,} were asked for.")
    found = np.empty((n, rows.d_in), dtype=np.float32)
    for i in range(rows.num_chunks):
        start, stop = rows.chunk_bounds(i)
        if start >= n:
            break
        found[start : min(stop, n)] = rows.read(i)[: n - start].float().numpy()
    return found
