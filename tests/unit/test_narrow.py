"""Scorers by a causal LM: planted latents, independent references, budget and resumption."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from _explanations import CTX, WORDS, CountedWords, latent, placed

from sae.errors import ConfigError
from sae.evals.autointerp import AutointerpEval
from sae.explanations.budget import Budget
from sae.explanations.embeddings import Embeddings
from sae.explanations.explainers import Explanation
from sae.explanations.latents import Subject, ranked
from sae.explanations.log_probs import Asked, LocalJudge, LogProbs
from sae.explanations.means import mean
from sae.explanations.narrow import ONCE, TOKENS, Narrow
from sae.explanations.scores import Bench, Scores
from sae.explanations.simulation import Simulation, expected, pearson, scale_of
from sae.explanations.study import Row
from sae.explanations.surprisal import PROMPT, UNEXPLAINED, Surprisal
from sae.features.firings import Firings
from sae.metrics.bootstrap import Bootstrap

PLANTED = ("apple", "bread", "elk", "zebra", "Paris", "blue", "fish", "goat")
LETTER = 1000
READ = {"surprisal": 3, "simulation": 4}


class Scripted:
    """A judge that takes a token for likely, and for active, if the description names its word.

    Letters of prompts are tokens from 1000; the words of the text are tokens below.
    """

    separator = 999

    def __init__(self, ten=False, key="scripted"):
        self.ten, self.key, self.calls = ten, key, 0

    def ids(self, text):
        if self.ten and text.endswith("10"):
            return [*(LETTER + ord(letter) for letter in text[:-2]), 998]
        return [LETTER + ord(letter) for letter in text]

    def log_probs(self, prefix, rows):
        self.calls += 1
        said = "".join(chr(i - LETTER) for i in prefix if i >= LETTER)
        said = said[max(said.rfind("looks for "), said.rfind("Description: ")) :]
        named = np.array([word.strip() in said.split('"') for word in WORDS])
        return [self._of(named, row) for row in rows]

    def _of(self, named, row):
        if not row.ids:
            likely = 1 + 20 * named
            return np.log(likely / likely.sum())[list(row.tokens)][:, None][list(row.at)]
        noise = np.random.default_rng(row.tokens)
        found = []
        for at in row.at:
            active = named[row.tokens[at - 2]]  # word, tab, unknown
            p = noise.dirichlet(np.ones(len(row.ids)))
            p[-1 if active else 0] += 8
            found.append(np.log(p / p.sum()))
        return np.array(found)


def text(seed, training=False):
    """Words that are planted on one token in a hundred each, among others."""
    random = np.random.default_rng(seed)
    planted = [WORDS.index(f" {word}") for word in PLANTED]
    rest = [i for i in range(len(WORDS)) if i not in planted]
    chances = np.zeros(len(WORDS))
    chances[planted], chances[rest] = 0.01, (1 - 0.01 * len(planted)) / len(rest)
    return placed(training=training, tokens=random.choice(len(WORDS), (300, CTX), p=chances))


@pytest.fixture(scope="module")
def planted():
    """A dictionary of latents that fire on one word each, and its bench."""
    train, test = text(0, training=True), text(1)
    latents = [latent(word, train, test, f" {word}") for word in PLANTED]
    bench = Bench(test, test.counted, Embeddings(CountedWords()), 600)
    return Subject("planted", latents), bench


def rows_of(subject, words, bench):
    return [
        Row(one.name, explainer, "explained", text.words, one.density, 100, {}, {})
        for explainer, texts in words.items()
        for one, text in zip(subject.latents, texts, strict=True)
    ]


def oracle(subject):
    return {"oracle": [Explanation(f'the word "{one.name}"') for one in subject.latents]}


def read(subject, bench, judge, scorers=("surprisal", "simulation")):
    narrow = Narrow(judge, scorers, Budget())
    words = oracle(subject)
    return narrow.read_classes(subject, words, bench, rows_of(subject, words, bench)), narrow


def test_the_oracle_is_right_about_planted_latents_and_wrong_ones_are_at_chance(planted):
    rows, narrow = read(*planted, Scripted())
    of = {
        name: np.array([row.values[name] for row in rows])
        for name in rows[0].values if name != "surprisal_hard"
    }  # fmt: skip
    assert min(of["surprisal"]) > 0.95  # not 1: position 0 has the word, too, and does not count
    assert min(of["simulation"]) > 0.9
    assert min(of["simulation_top"]) > 0.9
    assert min(of["simulation_random"]) > 0.9
    for name, chance in (("surprisal", 0.5), ("simulation", 0), ("simulation_random", 0)):
        found = mean(of[f"{name}_deranged"], Bootstrap(num_resamples=200))
        assert found.low - 0.01 <= chance <= found.high + 0.01
    assert narrow.constant == 0
    assert all(len(row.deciles["surprisal"]) == 10 for row in rows)


def test_hard_negatives_hold_a_partner_and_not_the_latent(planted):
    subject, bench = planted
    one = latent(
        "apple", bench.text, bench.text, " apple",
        partners=subject.latents[1].test.row,
    )  # fmt: skip
    scores = Surprisal(LogProbs(Scripted()), bench).score(one, 0, Explanation('the word "apple"'))
    assert scores.values["surprisal_hard"] > 0.98
    # an explanation of the partner takes its excerpts for the right ones
    wrong = Surprisal(LogProbs(Scripted()), bench).score(one, 0, Explanation('the word "bread"'))
    assert wrong.values["surprisal_hard"] < 0.3


def test_without_enough_excerpts_or_with_an_overflow_there_is_no_surprisal(planted):
    subject, bench = planted
    one, words = subject.latents[0], Explanation('the word "apple"')
    few = replace(one, test=Firings(one.test.row[:4], one.test.value[:4]))
    everywhere = replace(one, test=Firings(bench.pool, np.ones(len(bench.pool), np.float32)))
    for latent_ in (few, everywhere):
        scores = Surprisal(LogProbs(Scripted()), bench).score(latent_, 0, words)
        assert np.isnan([*scores.values.values()]).all()

    class Overflowing(Scripted):
        def log_probs(self, prefix, rows):
            found = super().log_probs(prefix, rows)
            found[0][0] = np.nan
            return found

    scores = Surprisal(LogProbs(Overflowing(key="overflow")), bench).score(one, 0, words)
    assert np.isnan(scores.values["surprisal"])


def test_a_simulation_that_is_constant_counts_as_0_and_is_counted(planted):
    class Constant(Scripted):
        def log_probs(self, prefix, rows):
            return [np.full((len(row.at), max(1, len(row.ids))), -2.0) for row in rows]

    rows, narrow = read(*planted, Constant(key="constant"), scorers=["simulation"])
    assert [row.values["simulation"] for row in rows] == [0.0] * len(PLANTED)
    assert narrow.constant == len(PLANTED)
    assert narrow.facts()["constant simulations"] == len(PLANTED)


def test_a_latent_in_few_fragments_is_not_simulated(planted):
    _, bench = planted
    few = latent("none", bench.text, bench.text, " apple")
    few = type(few)("few", few.train, type(few.test)(few.test.row[:10], few.test.value[:10]), 0.01)
    scores = Simulation(LogProbs(Scripted()), bench).score(few, 0, Explanation('the word "apple"'))
    assert np.isnan([scores.values[name] for name in scores.values]).all()


@pytest.mark.parametrize("ten", [False, True])
def test_simulation_equals_the_aggregation_of_neuron_explainer(planted, ten):
    """Its expected values and its correlation, written again as slow loops."""
    subject, bench = planted
    judge = Scripted(ten, key=f"ten {ten}")
    simulation = Simulation(LogProbs(judge), bench)
    assert simulation.top == (10 if ten else 9)
    places = simulation._fragments[:6]
    words = 'the word "apple"'
    rows = [simulation._asked(row) for row in bench.text.tokens[places].tolist()]
    true, simulated = [], []
    activation = {int(p): float(a) for p, a in zip(*subject.latents[0].test, strict=True)}
    prompt = [judge.separator, *judge.ids(simulation.prompt(words))]
    for fragment, one in zip(places.tolist(), judge.log_probs(prompt, rows), strict=True):
        for place, log_probs in zip(fragment, one.tolist(), strict=True):
            total = math.fsum(math.exp(p) for p in log_probs)
            value = math.fsum(n * math.exp(p) / total for n, p in enumerate(log_probs))
            simulated.append(value)
            true.append(activation.get(place, 0.0))
    found = simulation.simulated(words, places)
    np.testing.assert_allclose(found.ravel(), simulated, rtol=1e-6)
    means = math.fsum(true) / len(true), math.fsum(simulated) / len(simulated)
    sums = [0.0, 0.0, 0.0]
    for a, b in zip(true, simulated, strict=True):
        a, b = a - means[0], b - means[1]
        sums = [sums[0] + a * b, sums[1] + a * a, sums[2] + b * b]
    by_hand = sums[0] / math.sqrt(sums[1] * sums[2])
    assert pearson(np.array(true), found.ravel()) == pytest.approx(by_hand, rel=1e-6)


def test_the_expected_value_divides_by_the_probability_of_all_numbers():
    assert expected(np.log([[0.2, 0.1, 0.1]])) == pytest.approx([0.75])
    assert math.isnan(pearson(np.ones(3), np.arange(3.0)))


def test_digits_of_two_tokens_are_refused():
    class Wide(Scripted):
        def ids(self, text):
            return [i for i in super().ids(text) for _ in range(2)]

    with pytest.raises(ConfigError, match="no single tokens for the digits"):
        scale_of(Wide())


@pytest.fixture
def exact(tiny_source):
    lm = tiny_source("gpt2").load()
    lm.model.double()
    return lm


def whole(lm, ids):
    with torch.no_grad():
        return torch.log_softmax(lm.model(torch.tensor([ids])).logits[0], -1)


def test_behind_a_kept_prefix_log_probs_are_those_of_whole_passes(exact):
    random = np.random.default_rng(0)
    prefix = random.integers(0, 256, 9).tolist()
    rows = []
    for length in (3, 7, 5, 7):
        tokens = tuple(random.integers(0, 256, length).tolist())
        rows.append(Asked(tokens, tuple(range(length))))
        rows.append(Asked(tokens, (0, length - 1), (4, 200)))
    found = LocalJudge(exact, pass_tokens=16).log_probs(prefix, rows)
    for row, one in zip(rows, found, strict=True):
        logs = whole(exact, [*prefix, *row.tokens])[len(prefix) - 1 :]
        for k, at in enumerate(row.at):
            wanted = row.ids or (row.tokens[at],)
            np.testing.assert_allclose(one[k], logs[at, list(wanted)], atol=1e-12)


def test_rises_are_the_difference_of_two_whole_passes(exact, planted):
    _, bench = planted
    judge = LocalJudge(exact)
    surprisal = Surprisal(LogProbs(judge), bench)
    middle = bench.pool[:3]
    found = surprisal.rises("apples", middle)
    for place, rise in zip(middle, found, strict=True):
        start = max(place - 16, place // CTX * CTX)
        ids = bench.text.tokens[start : min(place + 17, (place // CTX + 1) * CTX)].tolist()
        losses = []
        for words in ("apples", UNEXPLAINED):
            prompt = [judge.separator, *judge.ids(PROMPT.format(words))]
            logs = whole(exact, prompt + ids)
            losses.append(
                -sum(float(logs[len(prompt) - 1 + t, i]) for t, i in enumerate(ids)) / len(ids)
            )
        assert rise == pytest.approx(losses[1] - losses[0], abs=1e-10)


def test_a_killed_run_goes_on_where_it_was(planted):
    expected_rows, _ = read(*planted, Scripted(key="unbroken"))

    class Killed(Scripted):
        def log_probs(self, prefix, rows):
            if self.calls == 7:
                raise KeyboardInterrupt
            return super().log_probs(prefix, rows)

    first = Killed(key="broken")
    with pytest.raises(KeyboardInterrupt):
        read(*planted, first)
    again = Scripted(key="broken")
    rows, narrow = read(*planted, again)
    unbroken = Scripted(key="counted")
    _, whole_run = read(*planted, unbroken)
    assert again.calls == unbroken.calls - 7
    assert narrow.budget.spent == whole_run.budget.spent  # what is kept counts as read
    for row, other in zip(rows, expected_rows, strict=True):
        assert row.values == pytest.approx(other.values, nan_ok=True)


def test_the_budget_decides_how_many_latents_are_read(planted):
    subject, bench = planted
    words = oracle(subject)
    scorers = ("surprisal", "simulation")
    costs = [TOKENS[name] for name in scorers]
    budget = 5 * sum(costs) + 2 * 3 * 4 * max(costs)
    narrow = Narrow(Scripted(key="budget"), scorers, Budget(budget))
    narrow.plan(dict.fromkeys(scorers, 5), [READ])
    assert narrow.latents["simulation"] == 3
    assert narrow.latents["surprisal"] == 3 * 4 * TOKENS["simulation"] // (3 * TOKENS["surprisal"])
    rows = narrow.read(subject, words, bench, rows_of(subject, words, bench))
    assert sum("simulation" in row.values for row in rows) == 3
    assert 0 < narrow.budget.spent < budget
    assert narrow.facts()["scale"] == 9
    with pytest.raises(ConfigError, match=r"10,000 tokens of .*lm_tokens are too few.*Give more"):
        Narrow(Scripted(), scorers, Budget(10_000)).plan(dict.fromkeys(scorers, 5), [READ])


@pytest.mark.parametrize("factor", [1, 2])
def test_each_dictionary_and_scorer_has_the_share_of_the_plan(planted, monkeypatch, factor):
    """Where latents take what was estimated all are read; where twice that, some by each."""
    subject, bench = planted
    words, names = oracle(subject), ("surprisal", "simulation")
    to_come = [{"surprisal": 1, "simulation": 1}, {"simulation": 1}, {"surprisal": 1}]
    monkeypatch.setattr("sae.explanations.narrow.TOKENS", {"surprisal": 100, "simulation": 300})
    narrow = Narrow(Scripted(), names, Budget(6000))
    narrow.plan({}, to_come)
    assert narrow.latents == {"surprisal": 15, "simulation": 5}

    class Spends:
        def __init__(self, name):
            self.name = name

        def score(self, latent, seed, text, without=None):
            if without is None:
                narrow.budget.spend(factor * {"surprisal": 100, "simulation": 300}[self.name])
            return Scores({self.name: 1.0})

    monkeypatch.setattr(narrow, "_scorer", lambda name, *_: Spends(name))
    for one in to_come:
        rows = narrow.read(subject, words, bench, rows_of(subject, words, bench))
        for name in names:
            planned = min(narrow.latents[name], len(PLANTED)) if name in one else 0
            number = sum(name in row.values for row in rows)
            assert planned // factor <= number <= planned
    assert narrow.budget.spent <= 6000 + 600


def test_what_takes_no_tokens_is_read_when_all_are_spent(planted, monkeypatch):
    subject, bench = planted
    narrow = Narrow(Scripted(), ["simulation"], Budget(10**6))
    narrow.plan({}, [{"simulation": 1}, {"simulation": 0}, {}])
    narrow.budget.spend(10**6)
    free = type("Free", (), {"score": lambda *_: Scores({"simulation": 1.0})})()
    monkeypatch.setattr(narrow, "_scorer", lambda *_: free)
    words, read_ = oracle(subject), []
    for _ in range(3):
        rows = narrow.read(subject, words, bench, rows_of(subject, words, bench))
        read_.append(sum("simulation" in row.values for row in rows))
    assert read_ == [0, len(PLANTED), 0]
    assert narrow.unasked["simulation"]["planted"] == len(PLANTED)


def test_a_push_is_planned_once_a_latent():
    once, each = ONCE["intervention"], TOKENS["intervention"]
    budget = 22 * (once + each) + 4 * (2 * once + 3 * each)
    narrow = Narrow(Scripted(), ["intervention"], Budget(budget))
    narrow.plan({"intervention": 22, "surprisal": 34}, [{"intervention": 2}, {"intervention": 1}])
    assert narrow.latents == {"intervention": 4}


def test_the_first_few_latents_are_not_the_rarest():
    density = np.geomspace(1.1e-4, 0.09, 80)
    order = ranked(density)
    assert sorted(order) == list(range(80))
    assert sorted(i // 10 for i in order[:8]) == list(range(8))  # one of each bin
    few = [i // 10 for i in order[:3]]
    assert max(few) - min(few) >= 4
    assert min(abs(a - b) for a, b in itertools.combinations(few, 2)) >= 2


def test_no_scorer_reads_nothing(planted):
    judge = Scripted()
    subject, bench = planted
    words = oracle(subject)
    narrow = Narrow(judge, [], Budget(1))
    narrow.plan({}, [READ])
    rows = rows_of(subject, words, bench)
    with narrow.bar():
        assert narrow.read(subject, words, bench, rows) == rows
    assert judge.calls == narrow.budget.spent == 0


def test_an_unknown_scorer_is_refused():
    with pytest.raises(ConfigError, match=r"scorers=fuzzing must be one of surprisal, .*"):
        AutointerpEval(scorers=["fuzzing"])
