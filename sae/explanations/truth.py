"""Classes of known meaning, which a scorer must recognise before its scores count.

Classes of tokens come out of the text itself, topics out of labelled sets. A class plays a latent
that fires with 1 on its places; its explanation is the oracle's.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Bool, Int

from sae.artifacts.placed import PlacedSAE
from sae.explanations import pushed
from sae.explanations.changed import TokenReader
from sae.explanations.excerpts import SIZES, PlacedText
from sae.explanations.explainers import Explanation, Unexplained
from sae.explanations.latents import Latent, Subject
from sae.explanations.rules import Rule
from sae.features.firings import Firings
from sae.features.shown import Text
from sae.language.text import Tokenizer
from sae.tasks.labelled import probe_sets

TOKENS = {
    'the word "not"': r" ?not", 'the word "the"': r" ?the", 'the word "of"': r" ?of",
    'the word "said"': r" ?said", 'the word "because"': r" ?because", 'the word "but"': r" ?but",
    'the word "people"': r" ?people", 'the word "government"': r" ?government",
    "numbers and digits": r" ?\d+", "a comma": r",", "the end of a sentence": r"\.",
    "the dollar sign": r" ?\$", "a line break": r"\n+", "a quotation mark": r" ?[\"“”]",
    "names of months": r" ?(January|February|March|April|May|June|July|August|September|October"
    r"|November|December)",
    "days of the week": r" ?(Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)",
    "the pronouns he and she": r" ?(he|she|He|She)",
    "the pronouns I and we": r" ?(I|we|We)",
    'verbs that end with "ing"': r" [a-z]{3,}ing",
    "names of countries": r" ?(China|Russia|Iran|Syria|Germany|France|Britain|Australia|Canada"
    r"|Japan|India|Iraq|Israel|Turkey|Mexico|Korea)",
    "words about money": r" ?(money|tax|taxes|bank|dollars|pounds|price|prices|cost|costs|budget)",
    "words about the police": r" ?(police|officers?|arrested|arrest|crime|prison|jail|court)",
}  # fmt: skip
"""Classes of tokens: the oracle's explanation, and a pattern that the whole token matches."""
TOPICS = {
    ("139_news_class_Politics", 1): "world politics and conflicts",
    ("141_news_class_Entertainment", 1): "computers and technology companies",
    ("162_agnews_1", 1): "sports", ("163_agnews_2", 1): "business and the economy",
    ("158_code_C", 1): "source code in the programming language C",
    ("159_code_Python", 1): "source code in the programming language Python",
    ("160_code_HTML", 1): "HTML source code of web pages",
    ("76_trial-court", 1): "court cases and appeals",
    ("74_magnetic-field", 0): "magnetic fields in physics",
    ("157_amazon_5star", 1): "customer reviews of products",
    ("96_spam_is", 1): "advertisements sent to mobile phones",
    ("151_it_tick_HR Support", 0): "requests to a computer help desk",
}  # fmt: skip
"""Topics: a labelled set and a class of it, and what the texts of that class are about. The names
of some sets belong to other texts, so each was read."""
TOKEN_CLASSES, CLASSES = len(TOKENS), len(TOKENS) + len(TOPICS)
TOPIC_TEXTS = 100
"""Texts of each topic."""


def token_classes(
    train: PlacedText, test: PlacedText, pushed_on: PlacedSAE | None = None
) -> tuple[Subject, list[Explanation | Unexplained]]:
    """Classes of tokens as a dictionary of latents, with the true explanation and rule of each.

    Args:
        train: The training text.
        test: The test text.
        pushed_on: The SAE whose LM is pushed towards them; None: none is.
    """
    latents, oracle, tokens = [], [], {}
    words = [one.decode(errors="replace") for one in test.vocabulary]
    for name, pattern in TOKENS.items():
        matches = np.array([bool(re.fullmatch(pattern, word)) for word in words])
        sides = [np.flatnonzero(matches[of.tokens] & of.counted) for of in (train, test)]
        fired = [Firings(place, np.ones(len(place), np.float32)) for place in sides]
        density = len(sides[0]) / max(1, int(train.counted.sum()))
        latents.append(Latent(name, fired[0], fired[1], density))
        values = {f'"{words[i]}"' for i in np.flatnonzero(matches).tolist()}
        oracle.append(Explanation(name, Rule("token", tuple(sorted(values)), name)))
        tokens[name] = matches
    pushes = None if pushed_on is None else pushed.of_classes(pushed_on, tokens)
    return Subject("token classes", latents, TokenReader(tokens), pushes), oracle


def topic_classes(
    tokenizer: Tokenizer, vocabulary: Sequence[bytes]
) -> tuple[PlacedText, Subject, list[Explanation | Unexplained]]:
    """Texts of some topics, each an excerpt; the topics, and the oracle's explanations.

    Raises:
        SourceError: If the labelled sets cannot be fetched.
    """
    side = SIZES["whole"]
    contexts, topic = [], []
    sets = probe_sets([name for name, _ in TOPICS])
    for i, (one, (_, of_topic)) in enumerate(zip(sets, TOPICS, strict=True)):
        labelled = zip(one.texts, one.labels, strict=True)
        texts = (text for text, label in labelled if label == of_topic)
        for ids in islice(_long_enough(texts, tokenizer, 2 * side + 1), TOPIC_TEXTS):
            contexts.append(ids)
            topic.append(i)
    tokens, of = np.array(contexts), np.array(topic)
    text = PlacedText(
        Text("labelled sets", False, tokens, _middle(tokens.shape, side), vocabulary),
        np.zeros_like(tokens), frozenset(), tokens.shape[1],
    )  # fmt: skip
    middle = np.arange(len(tokens)) * text.ctx + side
    latents = []
    for i, name in enumerate(TOPICS.values()):
        own = middle[of == i]
        fired = Firings(own, np.ones(len(own), np.float32))
        latents.append(Latent(f"text about {name}", fired, fired, len(own) / len(of)))
    return text, Subject("topics", latents), [Explanation(one.name) for one in latents]


def random_classes(of: Subject, places: Int[np.ndarray, " n"], seed: int = 0) -> Subject:
    """Control classes of the same sizes at random places; fewer where places run out."""
    random = np.random.default_rng(seed)
    latents = []
    for one in of.latents:
        drawn = np.sort(random.choice(places, min(len(one.test.row), len(places)), replace=False))
        fired = Firings(drawn, np.ones(len(drawn), np.float32))
        latents.append(Latent(one.name, one.train, fired, one.density))
    return Subject(f"random sets for {of.name}", latents)


def _middle(shape: tuple[int, int], side: int) -> Bool[np.ndarray, "contexts ctx"]:
    found = np.zeros(shape, bool)
    found[:, side] = True
    return found


def _long_enough(texts: Iterator[str], tokenizer: Tokenizer, length: int) -> Iterator[list[int]]:
    for text in texts:
        ids = tokenizer(text[: 20 * length], add_special_tokens=False)["input_ids"]
        if len(ids) >= length:
            yield list(ids[:length])
