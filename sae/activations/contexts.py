"""Contexts instead of activations as batches: for training through the LM (end to end)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae.activations.datamodule import ActivationDataModule, Batches
from sae.activations.sources import LMActivations
from sae.activations.stats import Normalize
from sae.errors import ConfigError
from sae.provenance import content_key
from sae.sharing import sharing


@dataclass
class ContextBatch:
    """Some contexts of the training text; its length counts their vectors, as that of rows does."""

    tokens: Int[Tensor, "batch ctx"]
    document: Int[Tensor, "batch ctx"]
    rows_per_context: int

    def __len__(self) -> int:
        return len(self.tokens) * self.rows_per_context


class ContextDataModule(ActivationDataModule):
    """Trains on contexts, in an order that depends on (seed, epoch) alone; validates on rows.

    Step s of the stream of epochs holds contexts s * n to (s + 1) * n, n being the whole contexts
    in `batch_size`; each epoch is one permutation of all contexts.

    Args:
        source: Source of the text and the LM.
        batch_size: Vectors in an optimiser step, over all ranks; rounded down to whole contexts.
        epochs: Passes over the contexts.
        buffer_rows: Not used: contexts are few numbers.
        seed: Decides the order.
        normalize: As in `ActivationDataModule`.

    Raises:
        ConfigError: If not one context fits into a step.
    """

    source: LMActivations

    def __init__(
        self,
        source: LMActivations,
        *,
        batch_size: int,
        epochs: int = 1,
        buffer_rows: int = 1,
        seed: int = 0,
        normalize: Normalize = "spread",
    ):
        self.rows_per_context = source.specs["train"].rows_per_context
        self.contexts = batch_size // self.rows_per_context
        if not self.contexts:
            raise ConfigError(
                f"trainer.batch_size={batch_size} is less than a context, which has "
                f"{self.rows_per_context} vectors, and e2e trains on whole contexts. Raise it, or "
                "lower activations.ctx."
            )
        super().__init__(
            source, batch_size=self.contexts * self.rows_per_context, epochs=epochs,
            buffer_rows=buffer_rows, seed=seed, normalize=normalize,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Optimiser steps in all: all contexts, whatever rows of them count."""
        steps = self.epochs * len(self._text[0]) // self.contexts
        if not steps:
            raise ConfigError(
                f"trainer.batch_size={self.batch_size} is more than {self.epochs} epoch(s) of "
                f"{len(self._text[0]):,} contexts. Use a smaller one, more tokens or more epochs."
            )
        return steps

    def train_dataloader(self) -> Batches:
        """Batches of the remaining steps."""
        rank, world_size = self._rank()
        if self.contexts % world_size:
            raise ConfigError(
                f"trainer.batch_size={self.batch_size} holds {self.contexts} contexts, which "
                f"cannot be divided among {world_size} processes. Use a multiple of "
                f"{world_size * self.rows_per_context}."
            )

        def batches_from(step: int) -> Iterator[ContextBatch]:
            for one in range(step, self.steps):
                yield self._batch(self._chosen(one)[rank::world_size])

        def batches() -> Iterator[ContextBatch]:
            start = 0 if self.trainer is None else self.trainer.global_step
            key = ("contexts", rank, world_size, content_key(self.state_dict()))
            return sharing().stream(key, start, batches_from)

        return Batches(batches, self.steps)

    def _chosen(self, step: int) -> Int[np.ndarray, " contexts"]:
        places = np.arange(step * self.contexts, (step + 1) * self.contexts)
        epochs, within = (part.tolist() for part in np.divmod(places, len(self._text[0])))
        return np.array([self._order(e)[i] for e, i in zip(epochs, within, strict=True)])

    def _order(self, epoch: int) -> Int[np.ndarray, " contexts"]:
        if epoch not in self._orders:
            generator = np.random.default_rng([self.seed, epoch])
            self._orders[epoch] = generator.permutation(len(self._text[0]))
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, Int[np.ndarray, " contexts"]]:
        return {}

    @cached_property
    def _text(self) -> tuple[np.ndarray, np.ndarray]:
        store = self.source.store("train")
        return store.tokens, store.document

    def _batch(self, chosen: Int[np.ndarray, " contexts"]) -> ContextBatch:
        tokens, document = (torch.from_numpy(part[chosen]).long() for part in self._text)
        return ContextBatch(tokens, document, self.rows_per_context)
