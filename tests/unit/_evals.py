"""An LM made of three matrices, with its text, activations and SAEs, for tests of evaluations."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae.activations.counted import Counted
from sae.activations.counted_rows import CountedRows
from sae.activations.stats import RunningStats
from sae.activations.store import ActivationStore
from sae.dictionaries.sae import SAE, SAEConfig
from sae.evals import EvalResult, PlacedSAE
from sae.language.lm import LanguageModel
from sae.types import Ends, Point

POINT = Point("resid", 0)
CONTEXTS, CTX, VOCAB, D_IN = 20, 16, 13, 6


class TinyLM(LanguageModel):
    """Embed, add the mean of what came before, unembed; one point in the middle."""

    identity = {"kind": "fake"}
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embed = 3 * torch.randn(VOCAB, D_IN, generator=generator) + 1
        self.unembed = torch.randn(D_IN, VOCAB, generator=generator)
        self.calls = 0

    def activation(self, tokens: Tensor) -> Tensor:
        embedded = self.embed[tokens]
        positions = torch.arange(1, tokens.shape[1] + 1)[:, None]
        return embedded + embedded.cumsum(1) / positions

    def logits(self, tokens: Tensor, replace=None) -> Tensor:
        self.calls += 1
        x = self.activation(tokens)
        for function in (replace or {}).values():
            x = function(x)
        return x @ self.unembed

    def logits_under(self, tokens, conditions):
        return (self.logits(tokens, replace) for replace in conditions)


@dataclass
class Spec:
    keep_first: bool = False


class Store(ActivationStore):
    def __init__(self, lm: TinyLM, folder: Path, keep_first: bool):
        self.spec, self.folder = Spec(keep_first), folder
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, VOCAB, (CONTEXTS, 1), generator=generator)
        while tokens.shape[1] < CTX:  # written by the LM itself, so that ablations cost loss
            p = lm.logits(tokens)[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], dim=1)
        self.tokens = tokens.numpy().astype(np.int32)
        self.document = (np.arange(CONTEXTS * CTX) // 23).reshape(CONTEXTS, CTX).astype(np.int32)


class Rows:
    """The store's activations in chunks of 70 rows, or any activations with no documents."""

    def __init__(self, x: Tensor, document: np.ndarray | None, tokens: np.ndarray | None = None):
        self.x, self.document, self.token = x, document, tokens
        self.num_rows, self.d_in = x.shape
        self.num_chunks = math.ceil(len(x) / 70)
        running = RunningStats(x.shape[1])
        running.update(x)
        self.stats = running.result()

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        return 70 * i, min(70 * (i + 1), self.num_rows)

    def read(self, i: int) -> Tensor:
        return self.x[slice(*self.chunk_bounds(i))]

    def documents(self, i: int) -> np.ndarray | None:
        return None if self.document is None else self.document[slice(*self.chunk_bounds(i))]

    def tokens(self, i: int) -> np.ndarray | None:
        return None if self.token is None else self.token[slice(*self.chunk_bounds(i))]


class Source:
    """A source with one split and no more behind it than is given."""

    def __init__(self, rows, point: Point | None, store, load_lm, world, counted) -> None:
        self.rows, self.world, self.counted = rows, world, counted
        self.ends = None if point is None else Ends.at(point)
        self.store = lambda split: store
        if load_lm is not None:
            self.load_lm = lambda device: load_lm()

    def prepare(self) -> None: ...

    def split(self, name):
        return self.rows

    def describe(self):
        return {}


def place(
    sae: SAE, point: Point | None, rows, store=None, load_lm=None, *, world=None, counted=None,
    name: str = "",
) -> PlacedSAE:  # fmt: skip
    return PlacedSAE(sae, Source(rows, point, store, load_lm, world, counted), name)


def identity_sae() -> SAE:
    """x = relu(x) - relu(-x)."""
    eye = torch.eye(D_IN)
    W_enc, W_dec = torch.cat([eye, -eye], dim=1), torch.cat([eye, -eye])
    config = SAEConfig("l1", "relu", D_IN, 2 * D_IN)
    return SAE(W_enc, torch.zeros(2 * D_IN), W_dec, torch.zeros(D_IN), config)


def constant_sae(value: Tensor) -> SAE:
    sae = identity_sae()
    sae.b_enc.fill_(-1e6)
    sae.b_dec.copy_(value)
    return sae


def coarse_sae() -> SAE:
    sae = identity_sae()
    sae.b_enc.fill_(-0.7)
    return sae


def make(
    sae: SAE, folder: Path, keep_first: bool = False, counted: Counted | None = None,
    lm: TinyLM | None = None,
) -> PlacedSAE:  # fmt: skip
    lm = lm or TinyLM()
    store, start = Store(lm, folder, keep_first), 0 if keep_first else 1
    x = lm.activation(torch.from_numpy(store.tokens).long())[:, start:].reshape(-1, D_IN)
    lm.calls = 0
    rows = Rows(x, store.document[:, start:].ravel(), store.tokens[:, start:].ravel())
    those = rows if counted is None else CountedRows(rows, counted)
    return place(sae, POINT, those, store, lambda: lm, counted=counted)


def values(result: EvalResult) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in result.metrics.items()}
