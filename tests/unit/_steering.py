"""A tiny LM, an SAE with one latent that pushes the letter z, and texts about it."""

import csv
import os

import numpy as np
import pytest
import torch
from _features import CTX, POINT, make_sae, placed_on

from sae.activations.sources import LMActivations
from sae.tasks.concept import CLASSES
from sae.tasks.labelled import LabelledTexts
from sae.tasks.task import ids_of, one_token

Z_LATENT = 7
OPENINGS = ["abcde", "bacde", "cabde", "dabce"]


@pytest.fixture(scope="module")
def home():
    return os.environ["SAE_CACHE"]


@pytest.fixture(autouse=True)
def at_home(cache, home, monkeypatch):
    """The cache that the activations of `placed` are in; studies in it are shared by tests."""
    monkeypatch.setenv("SAE_CACHE", home)


@pytest.fixture(scope="module")
def placed(tiny_source, random_corpus):
    source = LMActivations(
        tiny_source("gpt2"), random_corpus(), POINT, tokens=4096, val_tokens=256,
        test_tokens=1024, ctx=CTX, dtype="float32",
    )  # fmt: skip
    source.prepare()
    sae = make_sae(source)
    lm = placed_on(source, sae).lm
    z = lm.model.get_output_embeddings().weight[one_token(lm.tokenizer, "z")]
    sae.W_dec[Z_LATENT] = z / z.norm()
    return placed_on(source, sae)


def about_z(count: int = 60, seed: int = 0) -> LabelledTexts:
    """Runs of z behind a few letters, and texts of other letters."""
    rng = np.random.default_rng(seed)
    texts = [f"{''.join(rng.choice(list('abcdefgh'), 8))}{'z' * 16}" for _ in range(count)]
    texts += ["".join(rng.choice(list("abcdefgh "), 24)) for _ in range(count)]
    return LabelledTexts("z", texts, np.repeat([1, 0], count), CLASSES)


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory):
    """The same texts as a CSV file."""
    file, made = tmp_path_factory.mktemp("csv") / "z.csv", about_z()
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        writer.writerows(
            zip(made.texts, ["zed" if y else "rest" for y in made.labels], strict=True)
        )
    return str(file)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "prompts.txt"
    file.write_text("\n".join(OPENINGS))
    return str(file)


SMALL = {
    "label": "zed", "features": [Z_LATENT], "kl": [0.3], "new_tokens": 8, "num_texts": 20,
    "num_tokens": 64, "temperature": 0.5, "resamples": 20, "draws": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(csv_file, text_file):
    return {"csv": csv_file, "text_file": text_file, **SMALL}


def tokens_of(lm, *texts: str) -> torch.Tensor:
    """Texts of one length behind the separator."""
    return torch.tensor([ids_of(lm.tokenizer, text) for text in texts])


def slow_kl(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    p, q = (torch.softmax(logits.double(), -1) for logits in (clean, other))
    return (p * (p / q).log()).sum(-1)
