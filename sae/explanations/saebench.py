"""SAEBench's automatic interpretation: its windows and its score, beside what its score hides.

Source: SAEBench 0.6 (arXiv 2503.09532), evaluation `autointerp`, with prompts in words of our own:
an LM explains a latent from 10 of its strongest windows of 21 tokens and 5 drawn by activation, and
then names those of 14 shuffled windows in which it fires: 2 strong, 2 drawn by activation, 10
random ones. The score is the share of right verdicts, so that naming none gives 10/14. Random
windows count as silent without a look, as there; here their number of firings is told as well.
Ours explains from the training text and scores on the test text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from sae.chat.desk import Desk
from sae.chat.messages import Reply, Request, without_thoughts
from sae.explanations.excerpts import PlacedText, marked
from sae.explanations.latents import Latent
from sae.explanations.means import mean
from sae.features.firings import Firings
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Type

SIDE = 10
"""Tokens on each side of the middle of a window."""
EXPLAINED, SCORED, RANDOM = (10, 5), (2, 2), 10
"""Strongest windows and windows drawn by activation, to explain from and to score; random ones."""
FLOOR = RANDOM / (sum(SCORED) + RANDOM)
"""Score of naming no window."""
MARKED_FROM = 0.01
"""Share of the latent's largest activation above which a token is marked."""
STUDIED: dict[str, tuple[Type, str]] = {
    "latent": ("string", ""), "state": ("string", ""), "explanation": ("string", ""),
    "score": ("float64", "share"), "balanced": ("float64", "share"),
    "random_that_fire": ("int64", ""),
}  # fmt: skip
_EXPLAIN = """\
You study neurons of a neural network. Each activates on some word, part of a word or idea in \
short texts. The words on which it activates stand between << and >>. You get texts in which the \
neuron activates, the strongest first. Say in one short sentence what it activates on. Do not \
list examples. Answer with the sentence alone, without quotation marks."""
_SCORE = """\
You study neurons of a neural network. You get a description of what a neuron activates on, and \
{} numbered texts in random order. Answer with the numbers of the texts in which the neuron \
activates, separated by commas, or with None. Write nothing else."""


class Sheet(NamedTuple):
    """The windows that a latent is scored on, shuffled.

    Args:
        texts: The windows.
        truth: True for those that count as ones in which the latent fires.
        random_that_fire: Random windows in which it fires all the same.
    """

    texts: list[str]
    truth: list[bool]
    random_that_fire: int


def saebench(
    latents: Sequence[Latent], texts: tuple[PlacedText, PlacedText],
    allowed: Bool[np.ndarray, " places"], desk: Desk, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row of `STUDIED` for each latent.

    Args:
        latents: Latents to explain.
        texts: The training and the test text.
        allowed: Places of the test text that are scored.
        desk: Asks the chat LM.
        seed: Decides what is drawn.
    """
    rows = [{"latent": one.name, "state": "too rare"} for one in latents]
    randoms = [np.random.default_rng([seed, one.seed, 4]) for one in latents]
    work = []
    for i, one in enumerate(latents):
        sheet = sheet_of(one.test, texts[1], allowed, randoms[i])
        request = _to_explain(one.train, texts[0], randoms[i])
        if sheet is not None and request is not None:
            work.append((i, sheet, request))
    replies = desk.ask("saebench, explain", [request for _, _, request in work]) if work else []
    asked = []
    for (i, sheet, _), reply in zip(work, replies, strict=True):
        rows[i]["state"] = reply if isinstance(reply, str) else "unparsed"
        if isinstance(reply, Reply) and reply.refuses:
            rows[i]["state"] = "refused"
        elif isinstance(reply, Reply) and (words := " ".join(without_thoughts(reply.text).split())):
            rows[i] |= {"explanation": words[:400]}
            asked.append((i, sheet, _to_score(words[:400], sheet.texts)))
    replies = desk.ask("saebench, score", [request for _, _, request in asked]) if asked else []
    for (i, sheet, _), reply in zip(asked, replies, strict=True):
        named = numbers(reply.text, len(sheet.texts)) if isinstance(reply, Reply) else None
        rows[i]["state"] = reply if isinstance(reply, str) else "unparsed"
        if named is not None:
            truth = np.array(sheet.truth)
            right = truth == np.isin(np.arange(1, len(truth) + 1), sorted(named))
            rows[i] |= {
                "state": "explained", "score": float(right.mean()),
                "balanced": float((right[truth].mean() + right[~truth].mean()) / 2),
                "random_that_fire": sheet.random_that_fire,
            }  # fmt: skip
    return rows


def metrics(
    studied: Sequence[Mapping[str, Any]], bootstrap: Bootstrap
) -> dict[str, tuple[float | None, ...]]:
    """SAEBench's score, its floor, and balanced accuracy on the same verdicts, with intervals.

    Args:
        studied: As `saebench` gives it; without rows there are no metrics.
        bootstrap: Over the latents.
    """
    if not studied:
        return {}
    found: dict[str, tuple[float | None, ...]] = {
        f"saebench_{name}": mean([row.get(name, float("nan")) for row in studied], bootstrap)
        for name in ("score", "balanced")
    }
    return found | {"saebench_floor": (FLOOR,)}


def windows(
    fired: Firings, text: PlacedText, allowed: Bool[np.ndarray, " places"],
    counts: tuple[int, int], random: np.random.Generator,
) -> Int[np.ndarray, " n"] | None:  # fmt: skip
    """Middles of the strongest windows, then of windows drawn by activation; none overlap.

    Args:
        fired: The latent's firings.
        text: The text.
        allowed: Places that may be a middle.
        counts: Number of windows of each kind.
        random: Draws.

    Returns:
        None where there are too few.
    """
    there = allowed[fired.row]
    place, value = fired.row[there], fired.value[there].astype(np.float64)
    order = np.argsort(-value, kind="stable")
    found: list[int] = []
    taken = np.zeros(len(text.tokens), bool)

    def take(candidates: np.ndarray, count: int) -> None:
        for middle in place[candidates]:
            if count and not taken[middle]:
                found.append(int(middle))
                (start,), (stop,) = text.bounds(np.array([middle]), 2 * SIDE)
                taken[start:stop] = True
                count -= 1

    take(order, counts[0])
    left = np.flatnonzero(~taken[place])
    if len(left):
        chances = value[left] / value[left].sum()
        take(random.choice(left, len(left), replace=False, p=chances), counts[1])
    return np.array(found) if len(found) == sum(counts) else None


def sheet_of(
    fired: Firings, text: PlacedText, allowed: Bool[np.ndarray, " places"],
    random: np.random.Generator,
) -> Sheet | None:  # fmt: skip
    """Windows to score a latent on; None where it fires too rarely."""
    positive = windows(fired, text, allowed, SCORED, random)
    places = np.flatnonzero(allowed)
    if positive is None or len(places) < RANDOM:
        return None
    negative = random.choice(places, RANDOM, replace=False)
    firing = text.any_within(marked(text, fired.row), negative, SIDE)
    every = np.concatenate([positive, negative])
    order = random.permutation(len(every))
    truth = order < len(positive)
    return Sheet(text.excerpts(every[order], SIDE), truth.tolist(), int(firing.sum()))


def numbers(reply: str, count: int) -> set[int] | None:
    """The numbers that a reply names, none for "None"; None where it is something else.

    Example:
        >>> numbers("2, 5", 14), numbers("None.", 14), numbers("15", 14), numbers("I think", 14)
        ({2, 5}, set(), None, None)
    """
    words = without_thoughts(reply).strip().strip(".").strip()
    if words.lower() == "none":
        return set()
    if not re.fullmatch(r"\d{1,3}(\s*,\s*\d{1,3})*,?", words):
        return None
    found = {int(number) for number in re.findall(r"\d+", words)}
    return found if max(found) <= count and min(found) >= 1 else None


def _to_explain(fired: Firings, text: PlacedText, random: np.random.Generator) -> Request | None:
    middles = windows(fired, text, text.counted, EXPLAINED, random)
    if middles is None:
        return None
    strong = fired.row[fired.value > MARKED_FROM * fired.value.max()]
    on = marked(text, strong)
    shown = [text.marked_excerpt(int(middle), SIDE, on) for middle in middles]
    return Request((("system", _EXPLAIN), ("user", "\n".join(_listed(shown)))), 60)


def _to_score(words: str, texts: Sequence[str]) -> Request:
    shown = "\n".join([f"Description: {words}", *_listed(texts)])
    return Request((("system", _SCORE.format(len(texts))), ("user", shown)), 30)


def _listed(texts: Sequence[str]) -> Iterator[str]:
    for i, text in enumerate(texts, 1):
        yield f"{i}. {' '.join(text.split())}"
