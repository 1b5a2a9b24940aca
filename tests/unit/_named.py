"""An LM with a vocabulary of words, some of them first names, for tests about names."""

import re

import pytest

from sae.activations.sources import LMActivations
from sae.language import GivenLM
from sae.language.lm import LanguageModel
from sae.tasks import names as module
from sae.types import Point

MALE = ("James", "John", "Robert", "Mark", "Paul", "Kevin", "Gary", "Larry", "Frank", "Scott",
        "Eric", "Andrew")  # fmt: skip
FEMALE = ("Mary", "Linda", "Susan", "Lisa", "Nancy", "Karen", "Betty", "Helen", "Donna", "Carol",
          "Ruth", "Sharon")  # fmt: skip
POINT = Point("resid", 1)


def words_tokenizer():
    """One token a word with the space before it, a line break or a sign; id 0 for other words."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from sae.tasks import gender

    text = " ".join([
        *(f" {name}" for name in (*MALE, *FEMALE)), *gender._WHEN, *gender._WHERE,
        "Name: \nGender: male female went to the , and he she",
    ])  # fmt: skip
    found = dict.fromkeys(re.findall(r" ?[A-Za-z]+|\n|[^A-Za-z\n]", text))
    more = [word.strip() for word in found if word.strip() not in found]
    vocabulary = {word: i for i, word in enumerate(["<unk>", *found, *dict.fromkeys(more)])}
    vocabulary["<|endoftext|>"] = 256
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    split = Regex(r" ?[A-Za-z]+|\n|[^A-Za-z\n]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(split, "isolated")
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", unk_token="<unk>"
    )


@pytest.fixture
def census(monkeypatch):
    """Names with made-up frequencies in place of the package's."""
    shares = {
        "male": {name: 3 - 0.1 * i for i, name in enumerate((*MALE, "Leslie", "Maximilian"))},
        "female": {name: 3 - 0.1 * i for i, name in enumerate((*FEMALE, "Leslie"))} | {"Mark": 0.1},
    }
    monkeypatch.setattr(module, "_frequencies", shares.__getitem__)
    module.unambiguous.cache_clear()
    yield shares
    module.unambiguous.cache_clear()


@pytest.fixture
def worded(tiny_source):
    """A tiny LM with that vocabulary."""
    model = tiny_source("gpt2").load().model
    return LanguageModel(model, words_tokenizer(), name="worded", identity={"kind": "worded"})


@pytest.fixture
def worded_source(worded, random_corpus):
    made = LMActivations(
        GivenLM(worded), random_corpus(), POINT, tokens=4096, val_tokens=256, test_tokens=512,
        ctx=16, dtype="float32",
    )  # fmt: skip
    made.prepare()
    return made
