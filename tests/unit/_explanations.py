"""A text of known words, latents planted in it, and an encoder that counts words."""

import re

import numpy as np

from sae.explanations.embeddings import Embeddings
from sae.explanations.excerpts import PlacedText
from sae.explanations.latents import Latent
from sae.explanations.scores import Bench
from sae.features.firings import Firings
from sae.features.shown import Text

WORDS = (
    " apple", " bread", " Cat", " dogs", " elk", " 42", " running", " singing", ",", " not",
    " never", " zebra", " Paris", " USA", "ly", "\n", " blue", " green", " fish", " goat",
)  # fmt: skip
CONTEXTS, CTX = 300, 40


class CountedWords:
    """A vector of counts of words, of length 1; no word is like another."""

    key = "counted words"

    def __init__(self):
        self.index, self.texts = {}, 0

    def embed(self, texts):
        self.texts += len(texts)
        found = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(found, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[self.index.setdefault(word, len(self.index)) % 63] += 1
            row[63] = not row.any()  # texts without words are like each other
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def placed(seed=0, training=False, contexts=CONTEXTS, tokens=None):
    """A text of random words; position 0 does not count."""
    if tokens is None:
        tokens = np.random.default_rng(seed).integers(0, len(WORDS), (contexts, CTX))
    counted = np.ones(tokens.shape, bool)
    counted[:, 0] = False
    vocabulary = [word.encode() for word in WORDS]
    text = Text("words", training, tokens, counted, vocabulary)
    return PlacedText(text, np.zeros_like(tokens), frozenset(), CTX - 1)


def firings(of, words):
    """Firings of random strength wherever one of the words is."""
    ids = [WORDS.index(word) for word in words]
    place = np.flatnonzero(np.isin(of.tokens, ids) & of.counted)
    value = np.random.default_rng(len(place)).uniform(1, 2, len(place))
    return Firings(place, value.astype(np.float32))


def latent(name, train, test, *words, **more):
    return Latent(name, firings(train, words), firings(test, words), 0.05, **more)


def bench_of(test, pool=600):
    return Bench(test, test.counted, Embeddings(CountedWords()), pool)
