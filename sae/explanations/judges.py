"""Scores by a chat LM that judges excerpts: detection and fuzzing (arXiv 2410.13928).

A judge reads an explanation and 5 excerpts at a time, with and without the latent in equal numbers
and mixed, and says of each whether it fits. The score is balanced accuracy; saying always yes gives
1/2. Excerpts whose verdict cannot be read are counted and not scored.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sae.chat.desk import Desk
from sae.chat.messages import Reply, Request
from sae.explanations.excerpts import MARKED_FROM, SIZES, marked
from sae.explanations.latents import Latent
from sae.explanations.prompts import of_judge, verdicts
from sae.explanations.scores import LEAST_POSITIVES, Bench, Excerpted
from sae.features.firings import Firings

JudgeName = Literal["detection", "fuzzing"]
JUDGES: tuple[JudgeName, ...] = ("detection", "fuzzing")
ALWAYS = 0.5
"""Score of a judge that always says yes."""
BATCH = 5
"""Excerpts in a request."""


class Case(NamedTuple):
    """An explanation, and the latent on whose excerpts it is judged.

    Args:
        latent: Whose excerpts.
        seed: Decides which; the same for all explanations of a latent.
        words: The explanation.
        of: The latent's excerpts of ±16 tokens.
        without: Excerpts in which this latent fires are left out: the explanation is of it.
    """

    latent: Latent
    seed: int
    words: str
    of: Excerpted
    without: Latent | None = None


class Judges:
    """Asks a chat LM for its verdicts.

    Args:
        desk: Sends requests to the chat LM.
        names: Kinds of judges.
        excerpts: Excerpts with the latent, and as many without, for each explanation.
    """

    def __init__(self, desk: Desk, names: Sequence[JudgeName], excerpts: int):
        self.desk, self.names, self.count = desk, names, excerpts
        self.unparsed = 0
        """Replies that held no verdict on each excerpt."""

    def to_json(self) -> dict[str, Any]:
        """Name of the LM, requests and tokens, as plain values."""
        spent = self.desk.spent.to_json()
        return {**self.desk.client.identity, **spent, "unparsed": self.unparsed}

    def scores(self, what: str, cases: Sequence[Case], bench: Bench) -> list[dict[str, float]]:
        """Balanced accuracy of each case by judge, and the share of replies without verdicts.

        Args:
            what: Name of this work, for people.
            cases: Explanations on excerpts.
            bench: Source of the excerpts.

        Returns:
            By name, `<name>_unparsed` the share; NaN where too few excerpts were judged.
        """
        found: list[dict[str, float]] = [{} for _ in cases]
        for name in self.names:
            sheets = [list(_sheets(name, case, bench, self.count)) for case in cases]
            asked = [sheet.request for own in sheets for sheet in own]
            replies = iter(self.desk.ask(f"{name}, {what}", asked) if asked else [])
            for values, own in zip(found, sheets, strict=True):
                values |= self._score(name, own, [next(replies) for _ in own])
        return found

    def _score(
        self, name: str, sheets: "Sequence[_Sheet]", replies: Sequence[Reply | str]
    ) -> dict[str, float]:
        truth, said = [], []
        answered = unparsed = 0
        for sheet, reply in zip(sheets, replies, strict=True):
            if not isinstance(reply, Reply):
                continue  # a failure is not a verdict
            answered += 1
            verdict = verdicts(reply.text, len(sheet.truth))
            if verdict is None:
                unparsed += 1
            else:
                truth += sheet.truth
                said += verdict
        self.unparsed += unparsed
        return {
            name: balanced_accuracy(np.array(truth, bool), np.array(said, bool)),
            f"{name}_unparsed": unparsed / answered if answered else float("nan"),
        }


class _Sheet(NamedTuple):
    """A request, and the true verdicts."""

    request: Request
    truth: list[bool]


def _sheets(name: JudgeName, case: Case, bench: Bench, count: int) -> Iterator[_Sheet]:
    """The requests about one explanation; none where there are too few excerpts."""
    random = np.random.default_rng([bench.seed, case.seed, 2])
    side = SIZES["whole"]
    places, silent = _strata(case.of, random), np.flatnonzero(case.of.silent)
    silent = random.permutation(bench.pool[silent])
    if case.without is not None:
        other = marked(bench.text, case.without.test.row)
        places = places[~bench.text.any_within(other, places, side)]
        silent = silent[~bench.text.any_within(other, silent, side)]
    size = min(count, len(places), len(silent))
    if size < LEAST_POSITIVES:
        return
    chosen = np.concatenate([places[:size], silent[:size]])
    texts = (
        bench.text.excerpts(chosen, side) if name == "detection"
        else _marked_texts(case.latent.test, chosen, size, bench, random)
    )  # fmt: skip
    truth = np.arange(2 * size) < size
    order = random.permutation(2 * size)
    for part in np.split(order, range(BATCH, 2 * size, BATCH)):
        yield _Sheet(
            of_judge(name, case.words, [texts[i] for i in part]), truth[part].tolist()
        )  # fmt: skip


def _strata(of: Excerpted, random: np.random.Generator) -> Int[np.ndarray, " n"]:
    """Places of all deciles in turn, those of a decile in random order."""
    order = random.permutation(len(of.places))
    seen = dict.fromkeys(of.decile.tolist(), 0)
    ranks = []
    for i in order:
        ranks.append(seen[int(of.decile[i])])
        seen[int(of.decile[i])] += 1
    return of.places[order[np.lexsort((of.decile[order], ranks))]]


def _marked_texts(
    fired: Firings, chosen: Int[np.ndarray, " n"], size: int, bench: Bench,
    random: np.random.Generator,
) -> list[str]:  # fmt: skip
    """Excerpts with marks: right ones where the latent fires, random ones elsewhere.

    As in delphi, as many random tokens are marked as there are right marks in the mean, rounded up.
    """
    text, side = bench.text, SIZES["whole"]
    values = np.zeros(len(text.tokens))
    values[fired.row] = fired.value
    found, counts = [], []
    bounds = list(zip(*text.bounds(chosen, side), strict=True))
    for place, (start, stop) in zip(chosen[:size], bounds, strict=False):
        part = values[start:stop]
        on = marked(text, start + np.flatnonzero(part >= MARKED_FROM * part.max()))
        counts.append(int(on.sum()))
        found.append(text.marked_excerpt(int(place), side, on))
    number = int(np.ceil(np.mean(counts)))
    for place, (start, stop) in zip(chosen[size:], bounds[size:], strict=True):
        able = start + np.flatnonzero(text.counted[start:stop])
        drawn = random.choice(able, min(number, len(able)), replace=False)
        found.append(text.marked_excerpt(int(place), side, marked(text, drawn)))
    return found


def balanced_accuracy(truth: Bool[np.ndarray, " n"], said: Bool[np.ndarray, " n"]) -> float:
    """Mean of the shares of right verdicts on either side; NaN below 5 excerpts on a side.

    Example:
        >>> truth = np.arange(10) < 5
        >>> balanced_accuracy(truth, truth), balanced_accuracy(truth, np.ones(10, bool))
        (1.0, 0.5)
    """
    if min(truth.sum(), (~truth).sum()) < LEAST_POSITIVES:
        return float("nan")
    return float((said[truth].mean() + (~said[~truth]).mean()) / 2)
