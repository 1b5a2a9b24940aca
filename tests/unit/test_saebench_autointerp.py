"""SAEBench's automatic interpretation: windows, score, floor, and replies of all kinds."""

import re

import numpy as np
import pytest
from _chat import Scripted
from _explanations import CTX, WORDS, latent, placed

from sae.chat.desk import Desk
from sae.explanations.saebench import (
    EXPLAINED,
    FLOOR,
    RANDOM,
    SCORED,
    SIDE,
    metrics,
    numbers,
    saebench,
    sheet_of,
    windows,
)
from sae.features.firings import Firings
from sae.metrics.bootstrap import Bootstrap

BOOTSTRAP = Bootstrap(num_resamples=100)


@pytest.fixture(scope="module")
def texts():
    return placed(1, training=True), placed(2)


def test_windows_are_strong_first_and_do_not_overlap(texts):
    one = latent("0", *texts, " zebra")
    test = texts[1]
    found = windows(one.test, test, test.counted, (4, 3), np.random.default_rng(0))
    value = dict(zip(one.test.row.tolist(), one.test.value.tolist(), strict=True))
    assert value[found[0]] == one.test.value.max()
    assert sorted((value[i] for i in found[:4]), reverse=True) == [value[i] for i in found[:4]]
    spans = [set(range(*map(int, (a[0], b[0])))) for a, b in
             (test.bounds(np.array([i]), SIDE) for i in found)]  # fmt: skip
    assert sum(map(len, spans)) == len(set.union(*spans))
    few = Firings(one.test.row[:2], one.test.value[:2])
    assert windows(few, test, test.counted, (4, 3), np.random.default_rng(0)) is None


@pytest.mark.slow
def test_windows_are_drawn_by_activation():
    """A firing of twice the strength is drawn first twice as often."""
    test = placed(2, contexts=2)
    row = np.array([5, CTX + 5])
    fired = Firings(row, np.array([1.0, 2.0], np.float32))
    draws = [windows(fired, test, test.counted, (0, 1), np.random.default_rng(i))[0]
             for i in range(3000)]  # fmt: skip
    assert np.mean(np.array(draws) == row[1]) == pytest.approx(2 / 3, abs=0.03)


def test_random_windows_that_fire_are_counted(texts):
    test = texts[1]
    often = latent("0", *texts, *WORDS[:6])
    sheet = sheet_of(often.test, test, test.counted, np.random.default_rng(0))
    assert (len(sheet.texts), sum(sheet.truth)) == (sum(SCORED) + RANDOM, sum(SCORED))
    assert sheet.random_that_fire == RANDOM  # six words of twenty are in every window


def desk_of(answer):
    """A desk whose LM answers the messages of a request; each test has a ledger of its own."""
    return Desk(Scripted(lambda request: answer(request.to_json()["messages"])), 10**8)


def asked_for(messages):
    """Numbers of the texts that hold the described word."""
    lines = messages[-1]["content"].splitlines()
    word = lines[0].removeprefix("Description: ")
    found = [line.split(".")[0] for line in lines[1:] if re.search(rf"\b{word}", line)]
    return ", ".join(found) or "None"


def explaining(messages):
    if messages[-1]["content"].startswith("Description"):
        return asked_for(messages)
    marked = re.findall(r"<< ?(\w+)>>", messages[-1]["content"])
    return max(set(marked), key=marked.count)


def test_an_lm_that_reads_well_scores_1_and_one_that_names_none_the_floor(texts):
    test = texts[1]
    rare = [latent(str(i), *texts, word) for i, word in enumerate((" zebra", " fish", " Paris"))]
    # random windows hold the word as well: where they fire, the score counts that as a mistake
    rows = saebench(rare, texts, test.counted, desk_of(explaining))
    assert [row["explanation"] for row in rows] == ["zebra", "fish", "Paris"]
    for row in rows:
        assert row["state"] == "explained"
        assert row["score"] == pytest.approx(1 - row["random_that_fire"] / 14)
    lazy = saebench(rare, texts, test.counted, desk_of(
        lambda m: "None" if m[-1]["content"].startswith("Desc") else "words"), seed=1)  # fmt: skip
    assert {row["score"] for row in lazy} == {FLOOR}
    assert {row["balanced"] for row in lazy} == {0.5}
    found = metrics(lazy, BOOTSTRAP)
    assert found["saebench_score"][0] == pytest.approx(10 / 14)
    assert found["saebench_balanced"][0] == 0.5
    assert found["saebench_floor"] == (pytest.approx(10 / 14),)
    assert metrics([], BOOTSTRAP) == {}


def test_states_say_why_there_is_no_score(texts):
    train, test = texts
    one = latent("0", train, test, " zebra")
    few = latent("1", train, test, " fish")
    few = type(few)("1", Firings(few.train.row[:9], few.train.value[:9]), few.test, 0.1)
    rows = saebench([one, few], texts, test.counted, desk_of(lambda m: "I would say 3"))
    assert [row["state"] for row in rows] == ["unparsed", "too rare"]
    assert "score" not in rows[0]
    assert saebench([one], texts, test.counted, desk_of(lambda m: " "))[0]["state"] == "unparsed"
    refusing = desk_of(lambda m: "I'm sorry, but I can't help with that.")
    refused = saebench([one], texts, test.counted, refusing, seed=1)
    assert refused[0]["state"] == "refused"  # not an explanation that scores 10/14
    assert "score" not in refused[0]
    broke = Desk(Scripted(None), 0)
    other = latent("2", train, test, " Paris")
    assert saebench([other], texts, test.counted, broke)[0]["state"] == "unasked"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("<think>1</think>3, 4", {3, 4}), ("0", None), ("1 and 2", None), ("1,2,", {1, 2}),
     ("NONE", set()), ("", None), ("1234", None)],
)  # fmt: skip
def test_replies_are_numbers_or_none(reply, expected):
    assert numbers(reply, 14) == expected


def test_explanations_are_made_from_fifteen_training_windows(texts):
    seen = []

    def answer(messages):
        seen.append(messages)
        return explaining(messages)

    saebench([latent("0", *texts, " zebra")], texts, texts[1].counted, desk_of(answer))
    shown = seen[0][-1]["content"].splitlines()
    assert len(shown) == sum(EXPLAINED)
    assert all("<<" in line and "zebra>>" in line for line in shown)  # or two in a row
    assert not any("<<" in line for line in seen[1][-1]["content"].splitlines())
