"""A store on disk of any size without an LM: the format and the code path of a harvest."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sae.activations.cache import StoreSpec
from sae.activations.harvest import harvest
from sae.activations.rows import Rows
from sae.activations.store import ActivationStore
from sae.language import GivenLM, LanguageModel, corpus_from_config
from sae.types import Point, Split

POINT = Point("resid", 0)
_CTX = 128


class RandomLM(LanguageModel):
    """Says random vectors, always the same few.

    Args:
        d_in: Width of the vectors.
    """

    def __init__(self, d_in: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.name, self.model = "random vectors", torch.nn.Identity()
        self.identity = {"kind": "benchmark"}
        self.vectors = torch.randn(_CTX, d_in, generator=generator)

    def check(self, point: Point) -> None:
        """It has every point."""

    def width(self, point: Point) -> int:
        """Width of the vectors."""
        return self.vectors.shape[1]

    def capture(self, tokens: Tensor, points: Sequence[Point]) -> dict[Point, Tensor]:
        """The vectors."""
        return {point: self.vectors.expand(len(tokens), -1, -1) for point in points}


class StoredVectors:
    """A source of activations: a training split of about `rows` rows in the cache.

    Args:
        rows: How many.
        d_in: How wide.
    """

    def __init__(self, rows: int, d_in: int) -> None:
        contexts = -(-rows // (_CTX - 1))  # position 0 is left out
        self.spec = StoreSpec(
            lm={"kind": "benchmark"}, corpus={"d_in": d_in}, split="train", ctx=_CTX,
            tokens=contexts * _CTX, dtype="bfloat16", seed=0, val_fraction=0.05,
            test_fraction=0.05, keep_first=False,
        )  # fmt: skip
        self.lm = RandomLM(d_in)

    def prepare(self) -> None:
        """Write the store."""
        contexts = np.zeros((self.spec.tokens // _CTX, _CTX), dtype=np.int32)
        names = {"lm": self.lm.name, "corpus": "none"}
        ActivationStore.create(self.spec, contexts, contexts, names)
        # the store has its tokens: the text is not read
        corpus = corpus_from_config({"kind": "random_words", "name": "none"})
        harvest(self.spec, [POINT], source=GivenLM(self.lm), corpus=corpus)

    def split(self, name: Split) -> Rows:
        """The rows; one split is all there is."""
        return ActivationStore.open(self.spec).rows(POINT)

    def describe(self) -> Mapping[str, object]:
        """Provenance."""
        return {"key": self.spec.key}
