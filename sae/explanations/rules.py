"""Rules in words that say where a latent fires, found by counting: no LM.

A rule says that a property of a place has one of some values: the token is " not", the word ends
with "ing", the token before is " of". For each latent, the rule of largest F1 over the places of
the training text that count is taken.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sae.explanations.excerpts import PlacedText

JOINED = (1, 3, 10)
"""Numbers of values that a rule joins, where it may join several."""
_QUOTES = {'"', "\u201c", "\u201d"}
_FIRST_POSITIONS = 8
_KINDS = {
    "numbers": r"\s*\d+([.,]\d+)*",
    "words with a capital letter": r"\s*[A-Z][a-z]+",
    "words in capital letters": r"\s*[A-Z]{2,}",
    "single letters": r"\s*[A-Za-z]",
    "punctuation": r"\s*[^\w\s]+",
    "line breaks": r".*\n.*",
    "white space": r"\s+",
    "parts inside a word": r"[a-z]+",
    "characters beyond ASCII": r".*[^\x00-\x7f].*",
}
"""Kinds of tokens, by a pattern that the whole token matches."""


Number = int | float | np.integer


class Property(NamedTuple):
    """A property of places.

    Args:
        name: Names it in rules.
        phrase: The rule in words, with {} for the values.
        of: Index in `values` of each place; -1 where it has none.
        values: Its values.
        joins: True if a rule may join several values.
        of_token: Index in `values` of each token, -1 where it has none, if a single token decides;
            None where more than that decides.
        behind: Places from the token that decides to the place.
    """

    name: str
    phrase: str
    of: Int[np.ndarray, " places"]
    values: Sequence[str]
    joins: bool = False
    of_token: Int[np.ndarray, " vocab"] | None = None
    behind: int = 0


class Rule(NamedTuple):
    """A rule: a property of a place has one of some values.

    Args:
        name: Name of the property.
        values: Values of the property that the rule accepts.
        words: The rule in words.
    """

    name: str
    values: tuple[str, ...]
    words: str


class Deciding(NamedTuple):
    """The tokens that decide about a rule.

    Args:
        tokens: Mask of the tokens for which it holds.
        behind: Places from the token that decides to the place that the rule is about.
    """

    tokens: Bool[np.ndarray, " vocab"]
    behind: int


class Fit(NamedTuple):
    """Precision, recall and F1 of a rule, 0 where undefined."""

    precision: float
    recall: float
    f1: float


class RuleText:
    """A text whose places have properties.

    Args:
        of: The text.
        allowed: Places that are looked at; all of them count.
        labels: Further properties of places by name (part of speech, named entity).
    """

    def __init__(
        self, of: PlacedText, allowed: Bool[np.ndarray, " places"], labels: Sequence[Property] = ()
    ):
        self.text, self.allowed = of, allowed
        self.properties = {one.name: one for one in (*_properties(of), *labels)}
        self._index = {
            name: {value: i for i, value in enumerate(one.values)}
            for name, one in self.properties.items()
        }
        self._support = {
            name: np.bincount(one.of[allowed] + 1, minlength=len(one.values) + 1)[1:]
            for name, one in self.properties.items()
        }

    def best(self, fired: Int[np.ndarray, " firings"], count: int = 1) -> list[Rule]:
        """The rules of largest F1, the largest first; of equal ones that of fewer values.

        Args:
            fired: Places where a latent fires; without one, there is no rule.
            count: Number of rules, at most.
        """
        fired = fired[self.allowed[fired]]
        every: dict[tuple[str, tuple[str, ...]], tuple[float, int]] = {}
        for name, one in self.properties.items():
            hits = np.bincount(one.of[fired] + 1, minlength=len(one.values) + 1)[1:]
            for joined in JOINED if one.joins else (1,):
                some = self._chosen(hits, self._support[name], len(fired), joined)
                found = _fit(hits[some].sum(), self._support[name][some].sum(), len(fired)).f1
                if found > 0:
                    values = tuple(str(one.values[i]) for i in some)
                    every.setdefault((name, values), (found, -len(some)))
        order = sorted(every, key=lambda rule: every[rule], reverse=True)[:count]
        return [
            Rule(name, values, _in_words(self.properties[name], values)) for name, values in order
        ]

    def deciding(self, rule: Rule) -> Deciding | None:
        """The tokens that decide about a rule; None if more than one token does."""
        one = self.properties.get(rule.name)
        if one is None or one.of_token is None:
            return None
        where = [self._index[rule.name].get(value, -2) for value in rule.values]
        return Deciding(np.isin(one.of_token, where), one.behind)

    def fit(self, rule: Rule, fired: Int[np.ndarray, " firings"]) -> Fit:
        """Precision, recall and F1 with which a rule, found on any text, predicts firings here.

        Args:
            rule: The rule.
            fired: Places where a latent fires.
        """
        fired = fired[self.allowed[fired]]
        one = self.properties[rule.name]
        index = self._index[rule.name]
        where = [index[value] for value in rule.values if value in index]
        predicted = np.isin(one.of, where) & self.allowed
        return _fit(predicted[fired].sum(), predicted.sum(), len(fired))

    def base_rate(self, fired: Int[np.ndarray, " firings"]) -> float:
        """F1 of the rule that always says yes."""
        positives = self.allowed[fired].sum()
        return _fit(positives, self.allowed.sum(), positives).f1

    def _chosen(
        self, hits: np.ndarray, support: np.ndarray, firings: int, joined: int
    ) -> Int[np.ndarray, " values"]:
        if joined == 1:  # any single value may be best, not the most frequent one alone
            f1 = 2 * hits / np.maximum(support + firings, 1)
            return np.array([int(f1.argmax())]) if len(f1) else np.zeros(0, int)
        order = np.argsort(-hits, kind="stable")[:joined]
        return order[hits[order] > 0]


def _fit(hits: Number, predicted: Number, firings: Number) -> Fit:
    """Precision, recall and F1 of counts.

    Example:
        >>> _fit(2, 4, 2)
        Fit(precision=0.5, recall=1.0, f1=0.6666666666666666)
    """
    return Fit(
        float(hits / max(predicted, 1)), float(hits / max(firings, 1)),
        float(2 * hits / max(predicted + firings, 1)),
    )  # fmt: skip


def _in_words(one: Property, values: tuple[str, ...]) -> str:
    return one.phrase.format(" or ".join(values) if one.joins else values[0])


def _properties(of: PlacedText) -> Iterator[Property]:
    words = [piece.decode(errors="replace") for piece in of.vocabulary]
    token = of.tokens
    table, values = _numbered(words, lambda word: f'"{word}"' if word else None)
    yield Property("token", "the token {}", table[token], values, True, table)
    stem = [word.strip().lower() for word in words]
    for name, phrase, joins, value in (
        ("word", "the word {}", True, lambda word: f'"{word}"' if word.isalpha() else None),
        *(_affix(i, True) for i in (2, 3, 4)),
        *(_affix(i, False) for i in (2, 3, 4)),
    ):
        table, values = _numbered(stem, value)
        yield Property(name, phrase, table[token], values, joins, table)
        if name == "word":
            before = np.roll(table[token], 1)
            before[:: of.ctx] = -1
            yield Property(
                "before", "what follows the word {}", before, values, of_token=table, behind=1
            )
    for phrase, pattern in _KINDS.items():
        kind = re.compile(pattern, re.DOTALL)
        is_kind = np.array([bool(kind.fullmatch(word)) for word in words])
        yield _yes(phrase, is_kind[token], np.where(is_kind, 0, -1))
    position = np.arange(len(token)) % of.ctx
    yield _yes("the beginning of the text", position < _FIRST_POSITIONS)
    yield _yes("text in quotation marks", _in_quotes(of, words))


def _affix(letters: int, first: bool) -> tuple[str, str, bool, Callable[[str], str | None]]:
    """A property: the first or last letters of words that have more."""

    def value(word: str) -> str | None:
        long_enough = word.isalpha() and len(word) > letters
        return (f'"{word[:letters]}"' if first else f'"{word[-letters:]}"') if long_enough else None

    end = "begin" if first else "end"
    return f"{end} {letters}", f"words that {end} with {{}}", False, value


def _numbered(
    words: Sequence[str], value: Callable[[str], str | None]
) -> tuple[Int[np.ndarray, " vocab"], list[str]]:
    """The value of each token as a number (-1: none), and all values."""
    of: dict[str, int] = {}
    table = np.full(len(words), -1, np.int64)
    for i, word in enumerate(words):
        if (found := value(word)) is not None:
            table[i] = of.setdefault(found, len(of))
    return table, list(of)


def _yes(
    phrase: str, where: Bool[np.ndarray, " places"],
    of_token: Int[np.ndarray, " vocab"] | None = None,
) -> Property:  # fmt: skip
    return Property(phrase, phrase, np.where(where, 0, -1), ("yes",), of_token=of_token)


def _in_quotes(of: PlacedText, words: Sequence[str]) -> Bool[np.ndarray, " places"]:
    """Places after an odd number of double quotation marks of their context."""
    marks = np.array([sum(letter in _QUOTES for letter in word) for word in words])
    seen = np.cumsum(marks[of.text.tokens], axis=1)
    return (seen % 2 == 1).ravel()


def of_labels(labels: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> list[Property]:
    """Properties out of labels of places: `pos` and `entity` of `sae.tasks.tagged`."""
    phrases = {"pos": "words of the part of speech {}", "entity": "names of the kind {}"}
    found = []
    for name, (of, names) in labels.items():
        kept = np.array([label not in ("O", "X") for label in names])
        found.append(Property(name, phrases[name], np.where(kept[of], of, -1), names))
    return found
