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
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.explanations.excerpts import marked
from sae.explanations.latents import Latent, Reader
from sae.explanations.rules import Deciding, Rule, RuleText
from sae.explanations.scores import LEAST_POSITIVES
from sae.features.firings import Firings

COUNTERFACTUAL = ("necessity", "sensitivity")
PLACES = 12
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


_ARMS = ("necessity", "same", "near", "sensitivity", "random")
UNTESTED = Trial(np.nan, np.nan, np.nan, np.nan, np.nan, np.nan)


class _Change(NamedTuple):
    """A context with one token replaced.

    Args:
        place: The place at which the latent is read.
        at: The place of the token that is replaced.
        token: The new token.
    """

    place: int
    at: int
    token: int


class Counterfactuals:
    """Changes places of a text so that a rule holds there, or does not.

    Args:
        rules: The text with its properties.
        seed: Seed of all draws.
    """

    def __init__(self, rules: RuleText, seed: int = 0):
        self.rules, self.text, self.seed = rules, rules.text, seed
        of = self.text
        self._counts = np.bincount(of.tokens[of.counted], minlength=len(of.vocabulary))
        words = [one.decode(errors="replace") for one in of.vocabulary]
        self._space = np.array([word[:1].isspace() for word in words], np.int64)
        self._kind = 10 * self._space + np.array([_letters(word.strip()) for word in words])

    def trial(self, latent: Latent, seed: int, rule: Rule | None, reader: Reader) -> Trial:
        """The outcome of a test of one rule; `UNTESTED` without a rule."""
        return UNTESTED if rule is None else self.trials(latent, seed, [rule], reader)[0]

    def trials(
        self, latent: Latent, seed: int, rules: Sequence[Rule], reader: Reader,
        places: int = PLACES,
    ) -> list[Trial]:  # fmt: skip
        """Outcomes of tests; `UNTESTED` unless a single token decides about a rule.

        Args:
            latent: The latent.
            seed: Its seed, which decides the places.
            rules: Rules that may explain it.
            reader: Gives its activations on changed text.
            places: Places on either side.
        """
        fired = self._fired(latent)
        changes: dict[tuple[int, str], Sequence[_Change | None]] = {}
        for n, rule in enumerate(rules):
            deciding = self.rules.deciding(rule)
            if deciding is not None and deciding.tokens.any():
                changes |= {
                    (n, arm): of
                    for arm, of in self._changes(fired, deciding, places, [seed, 5]).items()
                }
        activations, tokens = self._read(latent.name, changes, reader)
        before = dict(zip(fired.row.tolist(), fired.value.tolist(), strict=True))
        found = []
        for n in range(len(rules)):
            if (n, "near") not in changes:
                found.append(UNTESTED)
                continue
            after = {arm: activations[n, arm] for arm in _ARMS}
            lost = {
                arm: _lost([before[one.place] for one in changes[n, arm] if one], after[arm])
                for arm in ("necessity", "same", "near")
            }
            found.append(Trial(
                lost["necessity"], _share(after["necessity"] <= 0), lost["same"], lost["near"],
                _share(after["sensitivity"] > 0), _share(after["random"] > 0), tokens,
            ))  # fmt: skip
            tokens = 0  # counted once
        return found

    def _changes(
        self, fired: Firings, of: Deciding, places: int, seed: list[int]
    ) -> dict[str, Sequence[_Change | None]]:
        """The changes of each arm; None where there is no token for one."""
        random = np.random.default_rng([self.seed, *seed])
        firing = self._firing(fired, of, places, random)
        true = [self._put(place, of, random) for place in self._silent(fired, of, places, seed)]
        return {
            "necessity": [self._swapped(place, of, ~of.tokens, random) for place in firing],
            "same": [self._swapped(place, of, of.tokens, random) for place in firing],
            "near": [self._near(place, of, random) for place in firing],
            "sensitivity": true,
            "random": [
                self._change(one.place, one.at, one.token, ~of.tokens, random) for one in true
            ],
        }

    def sensitivity(
        self, latent: Latent, seed: int, rule: Rule | None, reader: Reader
    ) -> tuple[float, int]:
        """Sensitivity of a latent to a rule that explains another one, and the tokens read."""
        deciding = None if rule is None else self.rules.deciding(rule)
        if deciding is None or not deciding.tokens.any():
            return float("nan"), 0
        random = np.random.default_rng([self.seed, seed, 6])
        silent = self._silent(self._fired(latent), deciding, PLACES, [seed, 5])
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

    def _silent(self, fired: Firings, of: Deciding, count: int, seed: list[int]) -> list[int]:
        """Places where the latent is silent and the rule does not hold; of two rules mostly alike.

        Places in one order that all rules share, so that what stands before them is read once.
        """
        order = np.random.default_rng([self.seed, *seed]).permutation(np.flatnonzero(
            self.rules.allowed & ~marked(self.text, fired.row)
        ))  # fmt: skip
        able = order[self._room(order, of)]
        return able[~self._holds(able, of)][:count].tolist()

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
            place: The place at which the latent is read.
            at: The place of the token.
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
        self, name: str, changes: Mapping[Any, Sequence[_Change | None]], reader: Reader
    ) -> tuple[dict[Any, Float[np.ndarray, " n"]], int]:
        """Activations after the changes that could be made, and the tokens that were read."""
        made = {arm: [one for one in of if one is not None] for arm, of in changes.items()}
        every = [one for of in made.values() for one in of]
        if not every:  # it fires wherever the rule does not hold, and nowhere else
            return {arm: np.zeros(0) for arm in made}, 0
        ctx = self.text.ctx
        place = np.array([one.place for one in every], np.int64)
        tokens = self.text.text.tokens[place // ctx].copy()
        for row, one in zip(tokens, every, strict=True):
            row[one.at % ctx] = one.token
        found = reader.read(name, tokens, place % ctx)
        ends = np.cumsum([len(of) for of in made.values()])
        arms = dict(zip(made, np.split(found, ends[:-1]), strict=True))
        return arms, reader.cost(tokens, place % ctx)


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
