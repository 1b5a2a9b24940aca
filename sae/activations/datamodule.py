"""The Lightning end of activations: scaled, shuffled batches that resume at any step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import torch
from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor

from sae.activations.counted import EVERY_ROW, Counted
from sae.activations.order import ShuffledOrder, shuffled_batches
from sae.activations.rows import Rows, parts_of
from sae.activations.sources import ActivationSource
from sae.activations.stats import Normalize
from sae.errors import ConfigError, StoreError
from sae.provenance import content_key
from sae.sharing import sharing
from sae.types import Split

_FEWEST_CHUNKS_SAMPLED = 8


class ActivationDataModule(LightningDataModule):
    """Serves a source's activations times `scale`; training is ONE Lightning epoch of `steps`.

    Epochs here are passes over the rows; batches run on over their borders, so no row is dropped
    but those of the last, incomplete batch. Set `Trainer(max_steps=datamodule.steps)`.
    A run that continues starts reading at `trainer.global_step`: one optimiser step a batch.

    Args:
        source: Source of the activations.
        batch_size: Rows in an optimiser step, over all ranks.
        epochs: Passes over the training rows.
        buffer_rows: Rows shuffled together in memory. Two such blocks are held at most.
        seed: Decides the order of training rows.
        normalize: `spread`: scale so that the entries of ordinary rows have a standard deviation of
            1/2. `mean_square`: so that the mean of ||x||^2 is d_in. `none`: scale 1.
        read_ahead: Read the next block in a thread; changes nothing about the batches.

    Example:
        >>> from sae.activations.folder import TensorActivations
        >>> data = ActivationDataModule(TensorActivations(torch.randn(100, 4)), batch_size=32)
        >>> data.prepare_data()
        >>> [tuple(batch.shape) for batch in data.train_dataloader()], data.steps
        ([(32, 4), (32, 4)], 2)
    """

    def __init__(
        self,
        source: ActivationSource,
        *,
        batch_size: int = 4096,
        epochs: int = 1,
        buffer_rows: int = 262_144,
        seed: int = 0,
        normalize: Normalize = "spread",
        read_ahead: bool = True,
    ):
        super().__init__()
        for name, value in (
            ("batch_size", batch_size), ("epochs", epochs), ("buffer_rows", buffer_rows)
        ):  # fmt: skip
            if value < 1:
                raise ConfigError(f"{name}={value} is out of range: give 1 or more.")
        if seed < 0:
            raise ConfigError(f"seed={seed} is out of range: give 0 or more.")
        if normalize not in get_args(Normalize):
            allowed = ", ".join(get_args(Normalize))
            raise ConfigError(f"normalize={normalize!r} is unknown. Choose one of {allowed}.")
        self.source = source
        self.batch_size, self.epochs, self.buffer_rows = batch_size, epochs, buffer_rows
        self.normalize: Normalize = normalize
        self.seed, self.read_ahead = seed, read_ahead
        self._splits: dict[Split, Rows] = {}

    def prepare_data(self) -> None:
        """Harvest (or measure) what is missing."""
        self.source.prepare()

    def rows(self, split: Split) -> Rows:
        """The rows of a split that count, unscaled."""
        if split not in self._splits:
            self._splits[split] = self.source.split(split)
        return self._splits[split]

    @property
    def d_in(self) -> int:
        """Width of the batches: of the activations, of all points together."""
        return self.rows("train").d_in

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each point's activations, in the order in which a batch concatenates them."""
        return tuple(part.d_in for part in parts_of(self.rows("train")))

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Factor between the LM's own units and what the batches hold, for each point."""
        parts = parts_of(self.rows("train"))
        return tuple(part.stats.scale_by(self.normalize) for part in parts)

    @cached_property
    def scale(self) -> float | Float[Tensor, " d_in"]:
        """`scales` ready to multiply with: one number, or one per entry of concatenated vectors."""
        if len(self.scales) == 1:
            return self.scales[0]
        pairs = zip(self.widths, self.scales, strict=True)
        return torch.cat([torch.full((width,), scale) for width, scale in pairs])

    @property
    def spreads(self) -> tuple[float, ...]:
        """Standard deviation of the entries of ordinary rows (`Stats.spread`), scaled, by point."""
        parts = parts_of(self.rows("train"))
        return tuple(
            part.stats.spread * scale for part, scale in zip(parts, self.scales, strict=True)
        )

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Mean training activation, float32, in the LM's own units."""
        return self.mean_of("train")

    def mean_of(self, split: Split) -> Float[Tensor, " d_in"]:
        """Mean activation of a split, float32, in the LM's own units."""
        return torch.from_numpy(self.rows(split).stats.mean).to(torch.float32)

    @property
    def counted(self) -> Counted | None:
        """Rows that count; None for a source of your own without a rule."""
        return getattr(self.source, "counted", None)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        num_rows = self.rows("train").num_rows
        steps = self.epochs * num_rows // self.batch_size
        if not steps:
            raise ConfigError(
                f"batch_size={self.batch_size} is more than {self.epochs} epoch(s) of "
                f"{num_rows:,} rows. Use a smaller batch_size, more tokens or more epochs."
            )
        return steps

    def train_dataloader(self) -> "Batches":
        """Batches [batch d_in] of the remaining steps."""
        rank, world_size = self._rank()
        if self.batch_size % world_size:
            raise ConfigError(
                f"batch_size={self.batch_size} is not divisible among {world_size} processes. "
                f"Use a multiple of {world_size}."
            )
        if self.trainer is not None and self.trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                f"accumulate_grad_batches={self.trainer.accumulate_grad_batches} breaks resuming, "
                "which counts one optimiser step a batch. Raise batch_size instead."
            )
        rows = self.rows("train")
        order = ShuffledOrder(rows, seed=self.seed, buffer_rows=self.buffer_rows)

        def batches_from(step: int) -> Iterator[Tensor]:
            return shuffled_batches(
                rows,
                order,
                batch_size=self.batch_size,
                start_step=step,
                stop_step=self.steps,
                scale=self.scale,
                rank=rank,
                world_size=world_size,
                read_ahead=self.read_ahead,
            )

        def batches() -> Iterator[Tensor]:
            start = 0 if self.trainer is None else self.trainer.global_step
            key = ("batches", rank, world_size, content_key(self.state_dict()))
            return sharing().stream(key, start, batches_from)

        return Batches(batches, self.steps)

    def val_dataloader(self) -> "Batches":
        """Validation rows that count in stored order, a chunk a batch."""
        return self._in_order("val")

    def test_dataloader(self) -> "Batches":
        """Test rows that count in stored order, a chunk a batch."""
        return self._in_order("test")

    def sample_rows(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """Random training rows times `scale`, float32: the same for the same seed.

        Few chunks are read: twice the rows asked for, at least 8 chunks. If `n` is the number of
        rows or more, all rows come, in stored order.
        """
        key = ("sample", n, seed, content_key(self.state_dict()))
        return sharing().value(key, lambda: self.draw_rows(n, seed))

    def draw_rows(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """`sample_rows` without its wait for other trainings: a lock may be held meanwhile."""
        rows = self.rows("train")
        generator = torch.Generator().manual_seed(seed)
        if n >= rows.num_rows:
            chunks = list(range(rows.num_chunks))
        else:
            mean_size = max(1, rows.num_rows // rows.num_chunks)
            wanted = min(rows.num_chunks, max(_FEWEST_CHUNKS_SAMPLED, -(-2 * n // mean_size) + 1))
            chunks = torch.randperm(rows.num_chunks, generator=generator)[:wanted].tolist()
        starts = [0]
        for i in chunks:
            first, stop = rows.chunk_bounds(i)
            starts.append(starts[-1] + stop - first)
        chosen = torch.randperm(starts[-1], generator=generator)[:n].sort().values
        cuts = torch.searchsorted(chosen, torch.tensor(starts)).tolist()
        found = [
            rows.read(i)[chosen[a:b] - start].to(torch.float32)
            for i, start, a, b in zip(chunks, starts[:-1], cuts[:-1], cuts[1:], strict=True)
        ]
        return torch.cat(found).mul_(self.scale)

    def state_dict(self) -> dict[str, object]:
        """Identity of the order of rows; the position in it is the trainer's global step."""
        return {
            "rows": str(getattr(self.source, "rule", EVERY_ROW)),
            "data": self.source.describe()["key"],
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "buffer_rows": self.buffer_rows,
            "seed": self.seed,
            "normalize": self.normalize,
        }

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Refuse to continue on other data than the checkpoint's; only `epochs` may grow.

        Raises:
            StoreError: If the activations are others.
            ConfigError: If other rows count, or their order would be another.
        """
        here = self.state_dict()
        for name, value in here.items():
            then = state_dict.get("rows", EVERY_ROW) if name == "rows" else state_dict[name]
            if name == "epochs" and self.epochs >= int(str(then)):
                continue
            if value != then:
                if name == "data":
                    check_same_data(str(then), self.source)
                what = "which rows count" if name == "rows" else name
                raise ConfigError(
                    f"This run cannot continue the checkpoint: {what} was {then} and is {value} "
                    "now. Restore the old value, or start a new run."
                )

    def _in_order(self, split: Split) -> "Batches":
        rows, (rank, world_size) = self.rows(split), self._rank()

        def batches() -> Iterator[Tensor]:
            for i in range(rows.num_chunks):
                # Every rank gets a slice of every chunk, so all have the same number of batches.
                mine = rows.read(i).tensor_split(world_size)[rank]
                yield mine.to(torch.float32) * self.scale

        return Batches(batches, rows.num_chunks)

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size


def check_same_data(then: str, source: ActivationSource) -> None:
    """Compare the key that activations had in a checkpoint with the one they have now.

    Raises:
        StoreError: If it is another.
    """
    if (now := source.describe()["key"]) != then:
        raise StoreError(
            f"This run cannot continue: its activations had the key {then}, and the present ones "
            f"have the key {now}. The LM, the text or the folder of activations has changed. "
            "Restore the old one, or start a new run."
        )


@dataclass
class Batches:
    """Batches for Lightning: anything sized will do, and a DataLoader would only add work.

    The two state methods tell Lightning that the loader resumes by itself, at the global step.
    """

    batches: Callable[[], Iterator[Any]]
    length: int

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def __len__(self) -> int:
        return self.length

    def state_dict(self) -> dict:
        """Empty state: the trainer's global step is the position."""
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore nothing: the trainer's global step is the position."""
