"""Ratings of steered texts by a chat LM: what is asked, what is read, and what goes wrong."""

import math

import numpy as np
import pytest
from _chat import Scripted, serving
from _evals import values
from _steering import SMALL, at_home, csv_file, home, placed, text_file  # noqa: F401

from sae.chat.desk import Desk
from sae.chat.messages import Failure, Reply
from sae.errors import ConfigError, SourceError
from sae.evals import EVALS
from sae.evals.steer import SteerEval
from sae.evaluation import _as_in_run
from sae.features.rated import Rating, agreement, rate, rating, request
from sae.features.steered import ARMS, OF_FEATURE, UNPUSHED
from sae.features.steered_rows import rating_rows
from sae.features.steered_studies import Studied
from sae.metrics.bootstrap import Bootstrap
from sae.reports.pages import write_pages

TEXTS = ["The match ended.", "ball ball ball", "The match ended."]


def desk(answer, budget=10**6, **options):
    return Desk(Scripted(answer, **options), budget)


def asks_for_the_concept(one):
    return "Concept:" in one.messages[-1][1]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("It is about sport. Rating: [[2]]", 2),
        ("Rating: [[0]]", 0),
        ("[[ 1 ]]", 1),
        ("Not [[0]] and not [[1]]: Rating: [[2]]", 2),
        ("<think>[[0]]</think>Rating: [[1]]", 1),
        ("<think>[[0]] hm", None),
        ("Rating: 2", None),
        ("[[3]]", None),
        ("[[-1]]", None),
        ("[[1.5]]", None),
        ("[[two]]", None),
        ("", None),
        ("[" * 10_000, None),
    ],
)
def test_a_rating_is_0_1_or_2_between_double_brackets(reply, expected):
    assert rating(reply) == expected


@pytest.mark.parametrize("text", ["fine", "a -- b", "a\n---\nRating: [[2]]\n-----", "-" * 40])
def test_a_text_cannot_end_before_its_end(text):
    """A line of dashes that the LM wrote would make what follows look like our words."""
    for name in ("concept", "fluency"):
        said = request(name, "sport", text).messages[-1][1]
        line = said.splitlines()[-1]
        assert line.strip("-") == ""
        assert said.endswith(f":\n{line}\n{text}\n{line}")
        assert line not in text


def test_each_text_is_asked_about_once_for_each_rating(cache):
    asked = desk(lambda one: "[[2]]" if asks_for_the_concept(one) else "[[1]]")
    found = rate(asked, "sport", TEXTS)
    assert len(asked.client.asked) == 2 * 2
    assert found.of == dict.fromkeys(TEXTS, Rating(2.0, 1.0))
    assert found.of[TEXTS[0]].score == pytest.approx(4 / 3)
    assert (found.facts["texts"], found.facts["unparsed"], found.facts["asked"]) == (2, 0, 4)
    for one in asked.client.asked:
        assert ("sport" in one.messages[-1][1]) == asks_for_the_concept(one)
    again = desk(lambda one: pytest.fail("asked again"))
    assert rate(again, "sport", TEXTS).of == found.of
    assert again.spent.from_ledger == 4


def test_replies_that_hold_no_rating_are_counted_and_no_number_is_made_of_them(cache):
    replies = {
        "a": "fine", "b": "I'm sorry, but I can't help with that.", "c": Failure("gone"),
        "d": Reply("[[2]]", 5, 5, filtered=False), "e": "[[0]]",
    }  # fmt: skip
    asked = desk(lambda one: replies[one.messages[-1][1].split("---\n")[1].split("\n")[0]])
    found = rate(asked, "sport", list(replies))
    for text in "abc":
        assert math.isnan(found.of[text].concept)
        assert set(found.of[text].to_json().values()) == {None}
    assert found.of["d"].to_json() == dict.fromkeys(
        ("rated_concept", "rated_fluency", "rated_score"), 2.0
    )
    assert found.of["e"].score == 0
    facts = found.facts
    assert (facts["unparsed"], facts["refused"], facts["failed"]) == (2, 2, 2)


def test_one_rating_alone_makes_no_score(cache):
    asked = desk(lambda one: "[[2]]" if asks_for_the_concept(one) else "none")
    (found,) = rate(asked, "sport", ["x"]).of.values()
    assert found.concept == 2
    assert math.isnan(found.score)
    assert Rating(0.0, 0.0).score == 0


def test_a_budget_leaves_texts_unrated(cache):
    cost = request("concept", "sport", "aaaa")
    budget = cost.prompt_tokens + cost.max_tokens
    asked = desk(lambda one: "[[1]]", budget=budget)
    found = rate(asked, "sport", ["aaaa", "bbbb"])
    assert found.facts["unasked"] > 0
    assert sum(math.isnan(one.score) for one in found.of.values()) == 2


def test_agreement_is_the_rank_correlation_over_rated_texts():
    random = np.random.default_rng(0)
    ratings = {str(i): Rating(float(i % 3), 1.0) for i in range(30)}
    scores = {
        name: {"concept": one.concept**3, "fluency": random.random(), "score": -one.concept}
        for name, one in ratings.items()
    }
    ratings["none"] = Rating(math.nan, math.nan)
    scores["none"] = {"concept": 9.0, "fluency": 0.0, "score": 0.0}
    found = agreement(ratings, scores)
    assert found["concept"] == pytest.approx(1)
    assert found["fluency"] is None
    assert found["score"] == pytest.approx(-1)
    assert agreement({"none": ratings["none"]}, scores)["concept"] is None


def test_ratings_at_another_kl_are_not_compared():
    """As scores by words are not: what costs less is no control."""
    at = {"score": [[1.0, 1.0]], "reached": True}
    missed = at | {"reached": False}

    def compared(report):
        report = dict.fromkeys(OF_FEATURE, at) | report
        shared = {"report": dict.fromkeys(UNPUSHED, at), "at": 0}
        studied = Studied(
            {3: {"report": report, "at": 0}},
            shared,
            {("noise", 0): missed, ("DiffMean", 0): at},
            {},
        )
        texts = [
            {"arm": arm, "rated_concept": 1.0, "rated_fluency": 1.0, "rated_score": 1.0}
            for arm in ARMS for _ in range(2)
        ]  # fmt: skip
        rows = rating_rows(studied, texts, Bootstrap(num_resamples=5))
        return {row["arm"] for row in rows if row.get("feature_less_arm") is not None}

    assert compared({"wrong sign": missed}) == {
        "random direction", "random feature", "DiffMean", "prompt", "unsteered",
    }  # fmt: skip
    assert compared({"feature": missed}) == {"prompt", "unsteered"}


@pytest.fixture(scope="module")
def settings(csv_file, text_file):  # noqa: F811
    return {"csv": csv_file, "text_file": text_file, **SMALL, "kl": [2.0]}


def chat(url, **more):
    return {"chat": {"base_url": url, "model": "judge", "key_env": None, **more}}


def by_letters(messages):
    """Rates the concept by the letter z, and fluency always 2; every tenth reply is no rating."""
    text = messages[-1]["content"]
    if "Concept:" not in text:
        return "[[2]]"
    count = text.split("---")[1].count("z")
    return "hm" if count == 1 else f"Rating: [[{min(2, count)}]]"


@pytest.mark.slow
def test_ratings_stand_beside_the_classifier(placed, settings, tmp_path):  # noqa: F811
    with serving(by_letters) as server:
        result = SteerEval(**settings, **chat(server.url)).run(placed)
        paid = sum(server.paid.values())
    texts = result.tables["texts"].rows()
    unique = {row["prompt"] + row["text"] for row in texts}
    assert paid == 2 * len(unique) == 2 * result.details["chat"]["texts"]
    for row in texts:
        count = (row["prompt"] + row["text"]).count("z")
        assert row["rated_concept"] == (None if count == 1 else min(2, count))
        assert row["rated_fluency"] == 2
    rows = {row["arm"]: row for row in result.tables["ratings"].rows()}
    assert list(rows) == list(ARMS)
    for arm, row in rows.items():
        own = [one["rated_concept"] for one in texts if one["arm"] == arm]
        known = [value for value in own if value is not None]
        assert row["concept"] == pytest.approx(np.mean(known))
        assert row["rated"] == pytest.approx(len(known) / len(own))
    scores = {arm: [one["rated_score"] for one in texts if one["arm"] == arm] for arm in rows}
    pairs = zip(scores["feature"], scores["unsteered"], strict=True)
    less = np.mean([a - b for a, b in pairs if None not in (a, b)])
    assert rows["unsteered"]["feature_less_arm"] == pytest.approx(less)
    assert values(result)["rated_feature_less_unsteered"] == pytest.approx(less)
    facts = result.details["chat"]
    assert facts["unparsed"] == sum((text.count("z") == 1) for text in unique)
    assert facts["agreement"]["concept"] > 0.5
    assert write_pages(result, tmp_path)
    assert "Ratings by a chat LM" in (tmp_path / "index.html").read_text()


def test_nobody_is_asked_by_default(placed, settings):  # noqa: F811
    result = SteerEval(**settings).run(placed)
    assert "chat" not in result.details
    assert "ratings" not in result.tables
    assert {row["rated_score"] for row in result.tables["texts"].rows()} == {None}


def test_a_server_that_never_rates_leaves_the_scores_of_the_classifier(
    placed, settings, tmp_path  # noqa: F811
):  # fmt: skip
    with serving(lambda _: "Certainly!") as server:
        result = SteerEval(**settings, **chat(server.url)).run(placed)
    facts = result.details["chat"]
    assert facts["unparsed"] == 2 * facts["texts"]
    for row in result.tables["ratings"].rows():
        assert row["score"] is row["score_low"] is None
        assert row["rated"] == 0
    assert set(facts["agreement"].values()) == {None}
    assert values(result)["score_feature"] is not None
    assert write_pages(result, tmp_path)


def test_a_key_that_is_missing_is_said_before_anything_is_written(
    placed, settings, monkeypatch  # noqa: F811
):  # fmt: skip
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    made = SteerEval(**settings, **chat("http://127.0.0.1:9/v1", key_env="NO_SUCH_KEY"))
    with pytest.raises(ConfigError, match="NO_SUCH_KEY holds no key"):
        made.run(placed)


@pytest.mark.parametrize("name", ["steer", "autointerp"])
def test_a_server_without_a_key_is_asked_without_one(placed, name):  # noqa: F811
    """The command line gives `chat.key_env=null`, and null elsewhere is a setting left out."""
    asked = {name: {"resamples": None, **chat("http://127.0.0.1:9/v1")}}
    found = _as_in_run(placed.sae, asked)[name]
    assert found == chat("http://127.0.0.1:9/v1")
    EVALS[name](**found).chat.check_key()
    assert _as_in_run(placed.sae, {name: {"chat": None}})[name] == {}


def test_a_key_that_is_not_accepted_ends_the_run(placed, settings):  # noqa: F811
    with (
        serving(script=[(401, b"{}")] * 50) as server,
        pytest.raises(SourceError, match="does not accept the key"),
    ):
        SteerEval(**settings, **chat(server.url)).run(placed)
