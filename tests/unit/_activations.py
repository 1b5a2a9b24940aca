"""Small stand-ins for an LM, its source and a text, shared by the tests of sae/activations."""

import os
import time
from pathlib import Path

import numpy as np
import torch

from sae.activations import cache
from sae.activations.cache import StoreSpec
from sae.errors import SiteError
from sae.language.lm import LanguageModel
from sae.types import Point

RESID, MLP, LATE = Point("resid", 0), Point("mlp", 0), Point("resid", 3)
WORDS = 50


class FakeTokenizer:
    """One token a word: `w7` is 7; the separator is WORDS."""

    eos_token_id = WORDS

    def get_vocab(self):
        return {f"w{i}": i for i in range(WORDS)}

    def __call__(self, text, **options):
        return {"input_ids": [[int(word[1:]) for word in one.split()] for one in text]}


class FakeCorpus:
    name = "fake words"
    streaming = False

    def __init__(self, documents=400):
        self.num_documents = documents

    def identity(self):
        return {"kind": "fake", "documents": self.num_documents}

    to_config = identity

    def documents(self):
        rng = np.random.default_rng(0)
        for _ in range(self.num_documents):
            yield " ".join(f"w{i}" for i in rng.integers(0, WORDS, rng.integers(5, 60)))


class FakeLM(LanguageModel):
    """Activations that depend on token, position and neighbour; widths 8 and 24; 4 layers."""

    def __init__(self, seconds_a_batch=0.0, factor=1.0, log=None):
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(WORDS + 1, 24, generator=generator)
        self.seconds, self.factor, self.log = seconds_a_batch, factor, log
        self.batches, self.asked = [], []

    def check(self, point):
        if point.layer > 3:
            raise SiteError(f"{point} is not there; layers 0 to 3")

    def width(self, point):
        return {"resid": 8, "mlp": 24}[point.site]

    def capture(self, tokens, points):
        time.sleep(self.seconds)
        self.batches.append(tokens.clone())
        self.asked.append(list(points))
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(f"{os.getpid()}\n")
        x = self.embedding[tokens]
        x = x + 0.1 * x.roll(1, dims=1) + torch.arange(tokens.shape[1])[None, :, None] / 10
        x = self.factor * x
        return {p: x[..., : self.width(p)] * (p.layer + 1) for p in points}


class FakeSource:
    name = "fake-lm"

    def __init__(self, **options):
        self.lm, self.num_loads = FakeLM(**options), 0

    def identity(self):
        return {"kind": "fake"}

    to_config = identity

    def load(self, device="cpu"):
        self.num_loads += 1
        return self.lm

    def load_tokenizer(self):
        return FakeTokenizer()


def make_spec(**changes):
    """8 tokens a context, so 7 rows; with small chunks (63 rows) 9 contexts a chunk."""
    values = {
        "lm": FakeSource().identity(), "corpus": FakeCorpus().identity(), "split": "train",
        "ctx": 8, "tokens": 2000, "dtype": "bfloat16", "seed": 0, "val_fraction": 0.1,
        "test_fraction": 0.1, "keep_first": False,
    }  # fmt: skip
    return StoreSpec(**(values | changes))


def small_chunks():
    """Make chunks of about 64 rows in this process, so that small stores have many."""
    cache.ROWS_PER_CHUNK = 64


def tree(folder):
    """Every file with its bytes, but for metadata.json (it holds a time)."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != "metadata.json"
    }
