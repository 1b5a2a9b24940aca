"""Explainers that ask a chat LM, and judges whose errors are known."""

import re

import numpy as np
import pytest
from _chat import Scripted
from _explanations import WORDS, bench_of, latent, placed

from sae.chat.desk import Desk
from sae.chat.ledger import Ledger
from sae.chat.messages import Failure, Reply
from sae.explanations import prompts, summary
from sae.explanations.asked import Contexts, TokenPairs
from sae.explanations.asking import Asking, expected
from sae.explanations.excerpts import SIZES
from sae.explanations.explainers import EXPLAINERS, Explanation, TrainingText
from sae.explanations.judges import Case, Judges
from sae.explanations.latents import Latent, Subject
from sae.explanations.rules import RuleText
from sae.explanations.scores import excerpted
from sae.explanations.study import study
from sae.explanations.summary import QUALIFICATION, qualification, qualified_on
from sae.features.firings import Firings
from sae.metrics.bootstrap import Bootstrap

TRAIN, TEST = placed(1, training=True), placed(2)
ROW = re.compile(r"^Excerpt \d+: (.*)$", re.MULTILINE)


def desk_of(answer, budget=10_000_000, **options):
    return Desk(Scripted(answer, **options), budget)


def training():
    return TrainingText(TRAIN, RuleText(TRAIN, TRAIN.counted))


def words_of(name, count):
    """Latents of one word each."""
    return [latent(f"{name}{i}", TRAIN, TEST, WORDS[i]) for i in range(count)]


def rows(request):
    return ROW.findall(request.messages[-1][1])


def described(request):
    return request.messages[-1][1].partition("\n")[0].removeprefix("Description: ")


def has(row, word):
    return any(part.startswith(word) for part in row.split())  # "apple," and "applely" have it


def judge_with(error, seed=0):
    """Says whether the described word is there, or is marked, and errs with a probability."""
    random = np.random.default_rng(seed)

    def answer(request):
        word = described(request).strip()
        fits = [
            word in re.findall(r"<<\s*(.*?)>>", row) if "<<" in row else has(row, word)
            for row in rows(request)
        ]
        said = [fit ^ (random.random() < error) for fit in fits]
        return f"Here: [{', '.join(str(int(one)) for one in said)}]"

    return answer


def judged(desk, latents, words, names=("detection", "fuzzing"), count=20, text=TEST):
    bench = bench_of(text)
    judges = Judges(desk, names, count)
    cases = []
    for i, (one, explanation) in enumerate(zip(latents, words, strict=True)):
        of = excerpted(one, bench, *bench.drawn(one.test, i))["whole"]
        cases.append(Case(one, i, explanation, of))
    return judges, judges.scores("test", cases, bench)


def rare_text(seed=3):
    """A text in which words 0 to 5 are rare: two of them in every third context."""
    random = np.random.default_rng(seed)
    tokens = random.integers(6, len(WORDS), (300, 40))
    tokens[::3, [20, 24]] = random.integers(0, 6, (100, 2))
    return placed(tokens=tokens)


@pytest.mark.parametrize("error", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("name", ["detection", "fuzzing"])
def test_judges_recover_a_known_rate_of_errors(name, error):
    text = rare_text()
    latents = [latent(str(i), TRAIN, text, WORDS[i]) for i in range(5)]
    words = [WORDS[i].strip() for i in range(5)]
    desk = desk_of(judge_with(error))
    _, found = judged(desk, latents, words, (name,), text=text)
    values = [one[name] for one in found]
    number = sum(len(rows(request)) for request in desk.client.asked)
    assert number >= 150
    assert np.mean(values) == pytest.approx(1 - error, abs=2.6 * np.sqrt(0.25 / number))
    if error == 0:
        assert values == [1.0] * 5


def test_half_of_the_excerpts_fit_and_batches_are_of_five_in_mixed_order():
    desk = desk_of(lambda request: "[1, 1, 1, 1, 1]")
    (one,) = words_of("w", 1)
    judges, (values,) = judged(desk, [one], ["apple"], count=12)
    assert values["detection"] == values["fuzzing"] == 0.5
    sizes = [len(rows(request)) for request in desk.client.asked]
    # 24 excerpts, or fewer where the latent is silent in too few; the last batch may be short
    assert set(sizes[:-1]) <= {5, sizes[len(sizes) // 2 - 1]}
    assert judges.unparsed == sum(size != 5 for size in sizes)


def test_excerpts_are_those_of_the_encoder():
    bench = bench_of(TEST)
    (one,) = words_of("w", 1)
    places, deciles = bench.drawn(one.test, 0)
    desk = desk_of(lambda request: "[]")
    of = excerpted(one, bench, places, deciles)["whole"]
    Judges(desk, ("detection",), 10).scores("test", [Case(one, 0, "apple", of)], bench)
    asked = {row for request in desk.client.asked for row in rows(request)}
    known = {" ".join(text.split()) for text in TEST.excerpts(places, SIZES["whole"])}
    silent = {" ".join(t.split()) for t in TEST.excerpts(bench.pool[of.silent], SIZES["whole"])}
    assert len(asked & known) == 10
    assert asked <= known | silent


def test_fuzzing_marks_what_fires_and_as_many_random_tokens():
    text = rare_text()
    one = latent("w", TRAIN, text, WORDS[0])
    bench = bench_of(text)
    of = excerpted(one, bench, *bench.drawn(one.test, 0))["whole"]
    desk = desk_of(lambda request: "[]")
    Judges(desk, ("fuzzing",), 10).scores("test", [Case(one, 0, "apple", of)], bench)
    marks = [re.findall(r"<<\s*(.*?)>>", row) for r in desk.client.asked for row in rows(r)]
    right = [found for found in marks if set(found) == {"apple"}]
    wrong = [found for found in marks if set(found) != {"apple"}]
    assert len(right) == len(wrong) == 10
    assert not any("apple" in found for found in wrong)
    # tokens in a row share their marks; in 33 tokens that is rare
    most = int(np.ceil(np.mean([len(found) for found in right])))
    assert {len(found) for found in wrong} <= set(range(1, most + 1))


def test_a_wrong_explanation_is_judged_where_its_latent_is_silent():
    text = rare_text()
    a, b = (latent(str(i), TRAIN, text, WORDS[i]) for i in (0, 1))
    bench = bench_of(text)
    of = excerpted(a, bench, *bench.drawn(a.test, 0))["whole"]
    shown = []
    for without in (None, b):
        desk = desk_of(lambda request: "[]")
        desk.ledger = Ledger({"without": str(without)})
        case = Case(a, 0, "bread", of, without)
        Judges(desk, ("detection",), 10).scores("test", [case], bench)
        every = [row for request in desk.client.asked for row in rows(request)]
        shown.append(sum(has(row, "bread") for row in every))
    assert shown[0] > 0
    assert shown[1] == 0


def test_what_cannot_be_read_is_counted_and_not_scored():
    replies = iter(["yes, all of them", "[1, 0]", "[1, 1, 1, 1, 1]"] * 100)
    (one,) = words_of("w", 1)
    desk = desk_of(lambda _: next(replies))
    judges, (values,) = judged(desk, [one], ["apple"], ("detection",), count=20)
    number = len(desk.client.asked)
    assert judges.unparsed == number - number // 3
    assert values["detection_unparsed"] == pytest.approx(judges.unparsed / number)
    assert judges.to_json()["unparsed"] == judges.unparsed


def test_failures_are_not_scores():
    (one,) = words_of("w", 1)
    judges, (values,) = judged(desk_of(lambda _: Failure("down", lasting=True)), [one], ["apple"])
    assert np.isnan(values["detection"])
    assert np.isnan(values["detection_unparsed"])
    assert (judges.unparsed, judges.desk.spent.failed) == (0, len(judges.desk.client.asked))


def test_a_latent_with_too_few_excerpts_is_not_asked_about():
    one = Latent("w", Firings(np.array([50]), np.ones(1, np.float32)),
                 Firings(np.array([50, 90]), np.ones(2, np.float32)), 0.1)  # fmt: skip
    desk = desk_of(lambda _: "[1]")
    _, (values,) = judged(desk, [one], ["apple"])
    assert np.isnan(values["fuzzing"])
    assert desk.client.asked == []


def test_contexts_shows_marked_excerpts_with_strengths():
    values = Firings(*latent("w", TRAIN, TEST, " apple").train)
    one = Latent("w", values, values, 0.05)
    desk = desk_of(lambda _: "They are fruit.\n[EXPLANATION]: the word apple")
    assert Contexts(training()).explained([one], desk) == [Explanation("the word apple")]
    (request,) = desk.client.asked
    shown = request.messages[-1][1]
    assert len(rows(request)) == 20
    assert all("<< apple>>" in row or "<<apple>>" in row for row in rows(request))
    strengths = [int(s) for s in re.findall(r"apple: (\d+)\)", shown)]
    assert max(strengths) == 10
    assert min(strengths) >= 3
    assert "apple: 10)" in shown.splitlines()[1]  # the strongest context is the first


def test_token_pairs_shows_activations_from_0_to_10():
    (one,) = words_of("w", 1)
    desk = desk_of(lambda _: "the word apple\nand more")
    assert TokenPairs(training()).explained([one], desk) == [Explanation("the word apple")]
    shown = desk.client.asked[0].messages[-1][1]
    pairs = re.findall(r"^(.*)\t(\d+)$", shown.partition("without zeros")[0], re.MULTILINE)
    values = np.zeros(TRAIN.tokens.size)
    values[one.train.row] = one.train.value
    peak = int(one.train.row[one.train.value.argmax()])
    start, stop = max(peak // 40 * 40, peak - 32), min(peak // 40 * 40 + 40, peak + 33)
    scaled = [int(10 * value / values.max()) for value in values[start:stop]]
    assert [int(value) for _, value in pairs][: stop - start] == scaled
    assert "without zeros" in shown  # fewer than a fifth are active
    assert shown.endswith("the main thing this neuron does is find")


@pytest.mark.parametrize("name", ["contexts", "token_pairs"])
@pytest.mark.parametrize(
    ("reply", "state"),
    [
        ("I'm sorry, but I can't help with that.", "refused"),
        (Reply("", 1, 1, filtered=True), "refused"),
        (" \n\x00", "unparsed"),
        (Failure("down", lasting=True), "failed"),
    ],
)
def test_states_of_what_was_asked(name, reply, state):
    found = EXPLAINERS.find(name)(training()).explained(words_of("w", 2), desk_of(lambda _: reply))
    assert found == [state, state]


def test_beyond_the_budget_latents_are_unasked():
    desk = desk_of(lambda _: "[EXPLANATION]: x", budget=10)
    assert Contexts(training()).explained(words_of("w", 2), desk) == ["unasked"] * 2


def test_a_rare_latent_is_not_asked_about():
    place = np.arange(5) * 40 + 7
    one = Latent("w", Firings(place, np.ones(5, np.float32)), Firings(place, np.ones(5)), 0.01)
    desk = desk_of(lambda _: "[EXPLANATION]: x")
    assert Contexts(training()).explained([one], desk) == ["failed"]
    assert desk.client.asked == []


def test_what_replies_say():
    assert prompts.in_contexts("no phrase") is None
    assert prompts.in_contexts("[EXPLANATION]: a\n[explanation]: b\x07  c\n") == "b c"
    assert len(prompts.in_contexts("[EXPLANATION]: " + "x" * 9999)) == 400
    assert prompts.in_pairs("") is None
    assert prompts.verdicts("Excerpt [1]: yes", 1) == [True]
    assert prompts.verdicts("[0,1 , 1]", 3) == [False, True, True]
    assert prompts.verdicts("[2, 0]", 2) is None


def test_a_scorer_qualifies_with_a_good_judge_and_not_with_one_that_always_says_yes(monkeypatch):
    monkeypatch.setattr(summary, "LEAST_LATENTS", 6)  # classes
    text = rare_text()
    latents = [latent(WORDS[i].strip(), TRAIN, text, WORDS[i]) for i in range(6)]
    subject = Subject("classes", latents)
    words = {"oracle": [Explanation(one.name) for one in latents]}
    for answer, expected_kinds in (
        (judge_with(0.1), ["kind"]),
        (lambda request: str([1] * len(rows(request))), []),
    ):
        desk = desk_of(answer)
        desk.ledger = Ledger({"judge": expected_kinds})
        found = study(subject, words, bench_of(text), None, Judges(desk, ("detection",), 10))
        tested = qualification({"kind": (found, found)}, Bootstrap(num_resamples=50))
        assert qualified_on(tested)["detection"] == expected_kinds
        row = next(row for row in tested if row["scorer"] == "detection")
        assert set(row) == set(QUALIFICATION)
        assert row["wrong"] == pytest.approx(0.5, abs=0.15)


def test_one_more_latent_is_asked_about_alone_but_for_a_neighbour():
    """Excerpts of a latent do not depend on the latents beside it."""
    spent = []
    for latents in (words_of("w", 6)[1:], words_of("w", 6)):
        desk = desk_of(judge_with(0.0))
        given = {"x": [Explanation(WORDS[int(one.name[1:])].strip()) for one in latents]}
        study(
            Subject("SAE", latents), given, bench_of(TEST), None, Judges(desk, ("detection",), 10)
        )
        spent.append(desk.spent)
    assert spent[0].asked == 5 * 2 * 4
    assert spent[1].asked <= 3 * 4  # its own explanation, a wrong one, and the neighbour's


def test_the_estimate_counts_every_request():
    asking = Asking(base_url="local", excerpts=10)
    names = ["contexts", "tokens"]
    size = expected(asking, names, 8, given=0)
    # 8 explanations; 4 requests of 5 for 3 * 8 explanations and 2 * 34 of classes, by 2 judges
    assert size.requests == 8 + 2 * 4 * (3 * 8 + 2 * 34)
    assert 300 * size.requests < size.prompt_tokens < 1500 * size.requests
    alone = expected(Asking(base_url="local", judges=[]), names, 8, given=8)
    assert alone.requests == 8
    more = expected(asking, names, 8, given=8)
    assert more.requests == size.requests + 2 * 4 * 2 * 8
