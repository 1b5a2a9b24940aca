"""Counterfactuals: a latent on text in which a rule was made false, and made true, by one token.

A rule about tokens predicts two things. Where the latent fires and the rule holds, the latent loses
its activation when the token that decides is replaced by one for which the rule does not hold
(necessity). Where the latent is silent and the rule does not hold, it fires when a token is put
there for which the rule holds (sensitivity). Controls say what any change of the text does.

Sources: SAGE (arXiv 2511.20820) tests explanations of latents on texts made for the purpose, by an
LLM; sensitivity as a score is from arXiv 2509.23717, whose texts an LLM writes. Ours are text of
the corpus with one token changed, and no LLM is asked.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.explanations.excerpts import draw, marked
from sae.explanations.latents import Latent, Reader
from sae.explanations.rules import Deciding, Rule, RuleText
from sae.explanations.scores import LEAST_POSITIVES
from sae.features.firings import Firings

COUNTERFACTUAL = ("necessity", "sensitivity")
PLACES = 16
"""Places on either side of a test."""
NEAR = 4
"""Tokens before a place that the control of necessity changes one of."""
_ALIKE = 20
"""Tokens nearest in frequency that a replacement is drawn from."""


class Trial(NamedTuple):
    """Outcome of a test of a rule; NaN where fewer than 5 places could be changed.

    Args:
        necessity: Share of the activation that is lost when the rule is made false,
            1 - sum a' / sum a; below 0 where it grows.
        silenced: Share of these places on which the latent is silent then.
        same: Share that is lost when another token for which the rule holds takes the place.
        near: Share that is lost when another token shortly before is replaced (control).
        sensitivity: Share of silent places that fire when the rule is made true.
        random: Share that fire when a token as frequent and of the same kind is put there, for
            which the rule does not hold (control).
        tokens: Tokens that an LM read for it.
    """

    necessity: float
    silenced: float
    same: float
    near: float
    sensitivity: float
    random: float
    tokens: int = 0

    @property
    def margins(self) -> tuple[float, float]:
        """Necessity and sensitivity less their controls."""
        return self.necessity - self.near, self.sensitivity - self.random

    @property
    def falsified(self) -> bool | None:
        """True if necessity or sensitivity is not above its control; None where undefined."""
        return bool(min(self.margins) <= 0) if np.isfinite(self.margins).all() else None


UNTESTED = Trial(*[float("nan")] * 6)


class _Change(NamedTuple):
    """A context with one token replaced.

    Args:
        place: Where the latent is looked at.
        at: Where the token is replaced.
        token: What is put there.
    """

    place: int
    at: int
    token: int


class Counterfactuals:
    """Changes places of a text so that a rule holds there, or does not.

    Args:
        rules: The text with its properties.
        seed: Of all draws.
    """

    def __init__(self, rules: RuleText, seed: int = 0):
        self.rules, self.text, self.seed = rules, rules.text, seed
        of = self.text
        self._counts = np.bincount(of.tokens[of.counted], minlength=len(of.vocabulary))
        words = [one.decode(errors="replace") for one in of.vocabulary]
        self._space = np.array([word[:1].isspace() for word in words], np.int64)
        self._kind = 10 * self._space + np.array([_letters(word.strip()) for word in words])

    def trial(
        self, latent: Latent, seed: int, rule: Rule | None, reader: Reader, places: int = PLACES
    ) -> Trial:
        """The outcome of a test of a rule; `UNTESTED` unless a single token decides about it.

        Args:
            latent: The latent.
            seed: Its number in the dictionary, which decides the places.
            rule: The rule that explains it.
            reader: Gives its activations on changed text.
            places: Places on either side.
        """
        deciding = None if rule is None else self.rules.deciding(rule)
        if deciding is None or not deciding.tokens.any():
            return UNTESTED
        random = np.random.default_rng([self.seed, seed, 5])
        fired = self._fired(latent)
        firing = self._firing(fired, deciding, places, random)
        silent = self._silent(fired, deciding, places, random)
        true = [self._put(place, deciding, random) for place in silent]
        changes = {
            "necessity": [self._swapped(p, deciding, ~deciding.tokens, random) for p in firing],
            "same": [self._swapped(p, deciding, deciding.tokens, random) for p in firing],
            "near": [self._near(place, deciding, random) for place in firing],
            "sensitivity": true,
            "random": [
                self._change(one.place, one.at, one.token, ~deciding.tokens, random) for one in true
            ],
        }
        activations, tokens = self._read(latent.name, changes, reader)
        before = dict(zip(fired.row.tolist(), fired.value.tolist(), strict=True))
        lost = {
            name: _lost([before[one.place] for one in changes[name] if one], activations[name])
            for name in ("necessity", "same", "near")
        }
        return Trial(
            lost["necessity"], _share(activations["necessity"] <= 0), lost["same"], lost["near"],
            _share(activations["sensitivity"] > 0), _share(activations["random"] > 0), tokens,
        )  # fmt: skip

    def sensitivity(
        self, latent: Latent, seed: int, rule: Rule | None, reader: Reader
    ) -> tuple[float, int]:
        """Sensitivity of a latent to a rule that explains another one, and the tokens read."""
        deciding = None if rule is None else self.rules.deciding(rule)
        if deciding is None or not deciding.tokens.any():
            return float("nan"), 0
        random = np.random.default_rng([self.seed, seed, 6])
        silent = self._silent(self._fired(latent), deciding, PLACES, random)
        changes = {"it": [self._put(place, deciding, random) for place in silent]}
        activations, tokens = self._read(latent.name, changes, reader)
        return _share(activations["it"] > 0), tokens

    def _fired(self, latent: Latent) -> Firings:
        return latent.train if self.text.text.is_training else latent.test

    def _holds(self, place: Int[np.ndarray, " n"], of: Deciding) -> Bool[np.ndarray, " n"]:
        """True where the rule holds; `place` has `_room`."""
        return of.tokens[self.text.tokens[place - of.behind]]

    def _room(self, place: Int[np.ndarray, " n"], of: Deciding) -> Bool[np.ndarray, " n"]:
        """True where tokens that count stand at the place that decides and somewhere before."""
        inside = place % self.text.ctx > of.behind + 1
        at = np.where(inside, place - of.behind, 1)
        return inside & self.text.counted[at] & self.text.counted[at - 1]

    def _firing(
        self, fired: Firings, of: Deciding, count: int, random: np.random.Generator
    ) -> list[int]:
        """Places where the latent fires and the rule holds, of all strengths."""
        able = self.rules.allowed[fired.row] & self._room(fired.row, of)
        place, value = fired.row[able], fired.value[able]
        kept = self._holds(place, of)
        order = np.argsort(-value[kept], kind="stable")
        parts = np.array_split(place[kept][order], min(count, int(kept.sum())) or 1)
        return [int(random.choice(part)) for part in parts if len(part)]

    def _silent(
        self, fired: Firings, of: Deciding, count: int, random: np.random.Generator
    ) -> list[int]:
        """Places where the latent is silent and the rule does not hold."""
        able = np.flatnonzero(self.rules.allowed & ~marked(self.text, fired.row))
        able = able[self._room(able, of)]
        return draw(able[~self._holds(able, of)], count, int(random.integers(2**32))).tolist()

    def _put(self, place: int, of: Deciding, random: np.random.Generator) -> _Change:
        """The rule made true: by its tokens as often as they are in the text."""
        weights = (self._counts * of.tokens).astype(np.float64)
        weights = weights if weights.any() else of.tokens.astype(np.float64)
        token = random.choice(len(weights), p=weights / weights.sum())
        return _Change(place, place - of.behind, int(token))

    def _swapped(
        self, place: int, of: Deciding, allowed: Bool[np.ndarray, " vocab"],
        random: np.random.Generator,
    ) -> _Change | None:  # fmt: skip
        """The token that decides replaced by one of those that are allowed."""
        at = place - of.behind
        return self._change(place, at, int(self.text.tokens[at]), allowed, random)

    def _near(self, place: int, of: Deciding, random: np.random.Generator) -> _Change | None:
        """Another token shortly before replaced, by any."""
        at = place - of.behind
        before = np.arange(max(at - NEAR, place // self.text.ctx * self.text.ctx), at)
        at = int(random.choice(before[self.text.counted[before]]))
        every = np.ones(len(self._counts), bool)
        return self._change(place, at, int(self.text.tokens[at]), every, random)

    def _change(
        self, place: int, at: int, token: int, allowed: Bool[np.ndarray, " vocab"],
        random: np.random.Generator,
    ) -> _Change | None:  # fmt: skip
        """A token put in the place of another: of its kind if there is one, and as frequent.

        Args:
            place: Where the latent is looked at.
            at: Where the token is put.
            token: The token that it is to be like.
            allowed: Tokens that may be put there; of those, the ones that are in the text.
            random: Draws.
        """
        able = np.flatnonzero(allowed & (self._counts > 0))
        able = able[(able != token) & (able != self.text.tokens[at])]
        for kind in (self._kind, self._space):
            alike = able[kind[able] == kind[token]]
            able = alike if len(alike) else able
        if not len(able):
            return None
        apart = np.abs(np.log(self._counts[able]) - np.log(max(1, self._counts[token])))
        nearest = able[np.argsort(apart, kind="stable")[:_ALIKE]]
        return _Change(place, at, int(random.choice(nearest)))

    def _read(
        self, name: str, changes: Mapping[str, Sequence[_Change | None]], reader: Reader
    ) -> tuple[dict[str, Float[np.ndarray, " n"]], int]:
        """Activations after the changes that could be made, and the tokens that were read."""
        made = {arm: [one for one in of if one is not None] for arm, of in changes.items()}
        every = [one for of in made.values() for one in of]
        ctx = self.text.ctx
        place = np.array([one.place for one in every], np.int64)
        tokens = self.text.text.tokens[place // ctx].copy()
        for row, one in zip(tokens, every, strict=True):
            row[one.at % ctx] = one.token
        found = reader.read(name, tokens, place % ctx)
        ends = np.cumsum([len(of) for of in made.values()])
        return dict(zip(made, np.split(found, ends[:-1]), strict=True)), reader.cost(place % ctx)


def _lost(before: Sequence[float], after: Float[np.ndarray, " n"]) -> float:
    """Share of the sum that is lost; NaN where there are too few.

    Example:
        >>> _lost([1.0, 1.0, 2.0, 2.0, 4.0], np.array([0.0, 0.0, 1.0, 1.0, 0.5]))
        0.75
    """
    return float(1 - after.sum() / np.sum(before)) if len(after) >= LEAST_POSITIVES else np.nan


def _share(true: Bool[np.ndarray, " n"]) -> float:
    return float(true.mean()) if len(true) >= LEAST_POSITIVES else np.nan


def _letters(word: str) -> int:
    """Kind of the letters: small, capital, digits, or anything else."""
    if word.isalpha():
        return 0 if word.islower() else 1
    return 2 if word.isdigit() else 3
