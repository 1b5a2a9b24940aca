"""Rules under changed texts: planted causes, an LM against a slow loop, and the round of tests."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from _explanations import CTX, WORDS, bench_of, latent, placed
from _features import make_sae, placed_on, source  # noqa: F401

from sae.errors import ConfigError
from sae.explanations.budget import Budget
from sae.explanations.changed import LMReader, TokenReader
from sae.explanations.counterfactual import PLACES, UNTESTED, Counterfactuals, Trial
from sae.explanations.explain import explained
from sae.explanations.explainers import Explanation, TrainingText
from sae.explanations.falsified import changed, falsified_rows, round_rows
from sae.explanations.latents import Latent, Subject
from sae.explanations.narrow import Narrow
from sae.explanations.rules import Rule, RuleText
from sae.explanations.study import Row
from sae.explanations.tested import TESTED, tokens_of, tokens_of_round, weight
from sae.explanations.truth import token_classes
from sae.features.firings import Firings
from sae.features.make import all_firings
from sae.metrics.bootstrap import Bootstrap

NOT, FISH, ZEBRA = (WORDS.index(word) for word in (" not", " fish", " zebra"))


class Caused:
    """A latent that fires with 2 where a function of the tokens up to a position says so."""

    def __init__(self, cause):
        self.cause = cause

    def read(self, name, tokens, at):
        pairs = zip(tokens, at, strict=True)
        return np.array([2.0 * self.cause(row[: end + 1].tolist()) for row, end in pairs])

    def cost(self, tokens, at):
        return int((at + 1).sum())


def caused(text, cause):
    """The latent of a cause, on one text."""
    where = [
        place for place in np.flatnonzero(text.counted)
        if cause(text.tokens[place // CTX * CTX : place + 1].tolist())
    ]  # fmt: skip
    fired = Firings(np.array(where), np.full(len(where), 2.0, np.float32))
    return Latent("0", fired, fired, 0.05)


def fish_after_not():
    """Words in which " fish" follows each " not" and stands nowhere else."""
    tokens = np.random.default_rng(0).integers(0, len(WORDS), (300, CTX))
    tokens[:, 1:][(tokens[:, 1:] == NOT) & (tokens[:, :-1] == NOT)] = 0
    tokens[tokens == FISH] = 0
    tokens[:, 1:][tokens[:, :-1] == NOT] = FISH
    return tokens


def token_rule(*ids):
    return Rule("token", tuple(f'"{WORDS[i]}"' for i in ids), "the tokens")


@pytest.fixture(scope="module")
def rules():
    text = placed(2)
    return RuleText(text, text.counted)


def test_a_true_rule_is_necessary_and_sufficient_and_its_controls_change_nothing(rules):
    one = latent("0", rules.text, rules.text, " fish", " zebra")
    found = Counterfactuals(rules).trial(
        one, 0, token_rule(FISH, ZEBRA),
        TokenReader({"0": np.isin(np.arange(len(WORDS)), [FISH, ZEBRA])}),
    )  # fmt: skip
    values = one.test.value  # what is kept reads 1, whatever it was
    assert found.necessity == found.silenced == found.sensitivity == 1.0
    assert found.random == found.tokens == 0
    for kept in (found.same, found.near):
        assert 1 - 1 / values.min() <= kept <= 1 - 1 / values.max()
    assert found.falsified is False


def test_a_rule_about_the_word_before_changes_that_word(rules):
    def after(row):
        return len(row) > 1 and row[-2] == ZEBRA

    rule = Rule("before", ('"zebra"',), "what follows the word zebra")
    found = Counterfactuals(rules).trial(caused(rules.text, after), 0, rule, Caused(after))
    assert (found.necessity, found.near, found.sensitivity, found.random) == (1, 0, 1, 0)
    assert np.isnan(found.same)  # no other token makes it true
    assert found.tokens > 0


def test_a_rule_that_holds_where_the_cause_is_another_token_is_falsified():
    tokens = fish_after_not()
    text = placed(tokens=tokens)
    rules = RuleText(text, text.counted)

    def after(row):
        return len(row) > 1 and row[-2] == NOT

    one = caused(text, after)
    assert rules.fit(token_rule(FISH), one.test.row).f1 == 1.0
    found = Counterfactuals(rules).trial(one, 0, token_rule(FISH), Caused(after))
    assert found.necessity == found.sensitivity == 0
    assert found.near > 0  # the cause is among the tokens before
    assert found.falsified


def test_the_round_finds_the_cause_among_rules_of_equal_f1():
    tokens = fish_after_not()
    text = placed(tokens=tokens, training=True)
    training = TrainingText(text, RuleText(text, text.counted))

    def after(row):
        return len(row) > 1 and row[-2] == NOT

    def fish(row):
        return row[-1] == FISH

    words = {}
    for cause in (after, fish):
        subject = Subject("SAE", [caused(text, cause)], Caused(cause))
        found = explained(subject, training, ["rules", TESTED])
        words[cause] = [found[name][0].words for name in ("rules", TESTED)]
    assert words[after] == ['the token " fish"', 'what follows the word "not"']
    assert words[fish] == ['the token " fish"', 'the token " fish"']


def test_rules_that_cannot_be_tested_are_not(rules):
    one, reader = latent("0", rules.text, rules.text, " fish"), Caused(lambda row: False)
    on = Counterfactuals(rules)
    for rule in (None, Rule("the beginning of the text", ("yes",), "x"), token_rule(),
                 Rule("pos", ("noun",), "x")):  # fmt: skip
        assert on.trial(one, 0, rule, reader) is UNTESTED
        assert np.isnan(on.sensitivity(one, 0, rule, reader)[0])
    assert UNTESTED.falsified is None


def test_a_latent_that_leaves_no_place_to_change_has_no_scores(rules):
    on, reader = Counterfactuals(rules), Caused(lambda row: True)
    text = rules.text
    for where in (text.counted, text.counted & (text.tokens != FISH)):
        place = np.flatnonzero(where)
        fired = Firings(place, np.ones(len(place), np.float32))
        found = on.trial(Latent("0", fired, fired, 0.9), 0, token_rule(FISH), reader)
        assert np.isnan([found.sensitivity, found.random]).all()
        assert found.falsified is None
        wrong, tokens = on.sensitivity(Latent("0", fired, fired, 0.9), 0, token_rule(FISH), reader)
        assert np.isnan(wrong)
        assert tokens == 0


def test_changes_are_what_they_say_they_are(rules):
    """Changed contexts differ in one token, which makes the rule false or true at its place."""
    seen = []

    class Spy(Caused):
        def read(self, name, tokens, at):
            seen.append((tokens.copy(), at.copy()))
            return super().read(name, tokens, at)

    one = latent("0", rules.text, rules.text, " fish", " goat")
    own = [FISH, WORDS.index(" goat")]
    found = Counterfactuals(rules).trial(one, 0, token_rule(*own), Spy(lambda row: row[-1] in own))
    ((tokens, at),) = seen
    assert found.tokens == (at + 1).sum()
    text = rules.text.text.tokens
    fires = set(one.test.row.tolist())
    for arm, part in enumerate(np.split(np.arange(len(at)), len(at) // PLACES)):
        places = []
        for i in part:
            (differs,) = ((text != tokens[i]).sum(1) == 1).nonzero()
            (context,) = [c for c in differs if (text[c] != tokens[i]).nonzero()[0][0] <= at[i]]
            (where,) = (text[context] != tokens[i]).nonzero()[0]
            place = context * CTX + at[i]
            places.append(place)
            new = tokens[i, where]
            near = arm == 2
            assert (where == at[i]) != near
            assert at[i] - 4 <= where <= at[i]
            if near:
                continue
            assert (place in fires) == (arm < 2)
            assert (new in own) == (arm in (1, 3))
            if arm < 2:  # of the kind of what it replaces
                assert WORDS[new].strip().isalpha()
                assert WORDS[new][0] == " "
        assert len({place // CTX for place in places}) > 8


def test_draws_depend_on_the_seed_alone(rules):
    one, reader = latent("0", rules.text, rules.text, " fish"), Caused(lambda row: sum(row) % 3)
    first, second, other = (
        Counterfactuals(rules, seed).trial(one, 0, token_rule(FISH), reader) for seed in (0, 0, 1)
    )
    assert first == second or np.array_equal(first, second, equal_nan=True)
    assert not np.array_equal(first, other, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_activations_are_those_of_whole_passes_one_by_one(source, activation):  # noqa: F811
    sae = make_sae(source, activation)
    one = placed_on(source, sae)
    tokens = np.array(source.store("test").tokens[:12])
    random = np.random.default_rng(0)
    at = random.integers(1, tokens.shape[1], len(tokens))
    tokens[np.arange(12), at - 1] = random.integers(0, 256, 12)
    names = ["3", "17"] + (["-3"] if activation == "identity" else [])
    for name in names:
        found = LMReader(one, one.lm).read(name, tokens, at)
        expected = []
        for row, end in zip(tokens, at, strict=True):
            ids = torch.from_numpy(row[None].astype(np.int64))
            x = one.lm.capture(ids, [one.point])[one.point][0, end].double()
            pre = x @ sae.W_enc[:, int(name.strip("-"))].double()
            pre = float(pre + sae.b_enc[int(name.strip("-"))])
            counts = bool(one.counted.mask([x[None].float()], ids[0, [end]])[0])
            expected.append(max(0.0, -pre if name[0] == "-" else pre) * counts)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_unchanged_text_has_the_firings_of_the_records(source):  # noqa: F811
    one = placed_on(source, make_sae(source))
    firings = all_firings(one, "test", num_tokens=2048)
    store = source.store("test")
    (fired,) = firings.read(range(5, 6))
    context, position = np.divmod(fired.row, store.spec.rows_per_context)
    at = position + store.spec.ctx - store.spec.rows_per_context
    found = LMReader(one, one.lm).read("5", np.array(store.tokens)[context], at)
    np.testing.assert_allclose(found, fired.value, atol=1e-5)


def test_what_was_read_is_not_read_again(source, monkeypatch):  # noqa: F811
    one = placed_on(source, make_sae(source))
    tokens = np.array(source.store("test").tokens[:4])
    at = np.array([3, 9, 2, 15])
    first = LMReader(one, one.lm).read("3", tokens, at)

    def no(*_):
        raise AssertionError("the LM was asked")

    monkeypatch.setattr(one.lm, "capture", no)
    behind = tokens.copy()
    behind[0, 4:] = 0  # what stands behind does not matter
    np.testing.assert_array_equal(LMReader(one, one.lm).read("3", behind, at), first)
    with pytest.raises(AssertionError, match="the LM was asked"):
        LMReader(one, one.lm).read("4", tokens, at)


def test_known_classes_qualify_and_a_wrong_class_does_nothing(rules):
    subject, oracle = token_classes(placed(1, training=True), rules.text)
    narrow = Narrow(_Silent(), ["counterfactual"], Budget(), rules)
    words = {"oracle": oracle}
    rows = narrow.read_classes(subject, words, bench_of(rules.text), _rows(subject, words))
    there = [row for row in rows if np.isfinite(row.values.get("necessity", np.nan))]
    assert {row.latent for row in there} >= {'the word "not"', "numbers and digits", "a comma"}
    for row in there:
        assert row.values["necessity"] == row.values["sensitivity"] == 1
        assert row.values["necessity_near"] == row.values["sensitivity_random"] == 0
        assert row.values["sensitivity_deranged"] in (0, pytest.approx(np.nan, nan_ok=True))
    assert narrow.budget.spent == 0  # no LM was asked


def test_the_budget_decides_how_many_latents_are_tested(rules):
    names = (" fish", " zebra", " not", " goat", " blue", " elk")
    latents = [latent(str(i), rules.text, rules.text, name) for i, name in enumerate(names)]
    reader = Caused(lambda row: row[-1] == FISH)
    subject = Subject("SAE", latents, reader)
    oracle = [Explanation(name, token_rule(WORDS.index(name))) for name in names]
    each = tokens_of(CTX)
    narrow = Narrow(_Silent(), ["counterfactual"], Budget(3 * 4 * each), rules)
    narrow.plan({}, [{"counterfactual": 4}])  # known classes take nothing of it
    assert narrow.latents == {"counterfactual": 3}
    rows = narrow.read(subject, {"x": oracle}, bench_of(rules.text), _rows(subject, {"x": oracle}))
    assert sum("necessity" in row.values for row in rows) == 3
    assert each < narrow.facts()["tokens"] < 4 * each
    with pytest.raises(
        ConfigError, match=r"2 latents of each dictionary by counterfactual take.*Give more"
    ):
        Narrow(_Silent(), ["counterfactual"], Budget(100), rules).plan({}, [{"counterfactual": 4}])


def test_the_round_of_tests_counts_against_the_budget():
    tokens = fish_after_not()
    text = placed(tokens=tokens, training=True)
    training = TrainingText(text, RuleText(text, text.counted))

    def after(row):
        return len(row) > 1 and row[-2] == NOT

    class Counted(Caused):
        read_tokens = 0

        def cost(self, tokens, at):
            found = super().cost(tokens, at)
            self.read_tokens += found
            return found

    budget, reader = Budget(), Counted(after)
    latents = [replace(caused(text, after), name=str(i)) for i in range(3)]
    subject = Subject("SAE", latents, reader)
    explained(subject, training, ["rules", TESTED], budget=budget)
    assert budget.spent == reader.read_tokens > 0
    few = Budget(budget.spent // 2)  # two of three latents are begun
    found = explained(subject, training, ["rules", TESTED], budget=few)
    assert [one == "unasked" for one in found[TESTED]] == [False, False, True]
    assert found["rules"].count("unasked") == 0  # counting takes no token


def test_the_round_of_tests_leaves_fewer_latents_to_scorers(rules):
    each, round_ = tokens_of(CTX), tokens_of_round(CTX)
    budget = 3 * 4 * each + 10 * round_
    for tested, latents in ((10, 3), (0, 3 + 10 * round_ // (4 * each))):
        narrow = Narrow(_Silent(), ["counterfactual"], Budget(budget), rules)
        narrow.plan({}, [{"counterfactual": 4}], tested)
        assert narrow.latents == {"counterfactual": latents}
    alone = Narrow(_Silent(), [], Budget(10 * round_), rules)
    alone.plan({}, [], 10)
    with pytest.raises(ConfigError, match=rf"rules of 11 latents take about {11 * round_:,} tok"):
        alone.plan({}, [], 11)


def test_without_a_reader_there_is_no_score(rules):
    subject = Subject("topics", [latent("0", rules.text, rules.text, " fish")])
    words = {"x": [Explanation("fish", token_rule(FISH))]}
    narrow = Narrow(_Silent(), ["counterfactual"], Budget(), rules)
    (row,) = narrow.read_classes(subject, words, bench_of(rules.text), _rows(subject, words))
    assert row.values == {}


def test_a_rule_weighs_nothing_unless_both_margins_are_above_0():
    good = Trial(0.9, 1.0, 0.0, 0.3, 0.8, 0.5)
    assert weight(0.4, good) == pytest.approx(3 / (1 / 0.4 + 1 / 0.6 + 1 / 0.3))
    assert weight(0.4, good._replace(near=0.9)) == weight(0.0, good) == 0
    assert weight(0.4, UNTESTED) == 0
    assert good._replace(random=0.8).falsified


def test_what_the_round_changed_is_compared_on_the_latents_that_it_changed():
    def row(name, explainer, words, **values):
        return Row(name, explainer, "explained", words, 0.1, 30, values, {})

    rows = [
        row("1", "rules", "a", rules=0.5, falsified=1.0, necessity=0.2),
        row("2", "rules", "b", rules=0.9, falsified=0.0, necessity=0.4),
        row("3", "rules", "c", rules=0.3, falsified=0.0),
        row("1", TESTED, "d", rules=0.4, falsified=0.0, necessity=0.8),
        row("2", TESTED, "b", rules=0.9, falsified=0.0, necessity=0.4),
        row("3", TESTED, "e", rules=0.5),
    ]
    assert changed(rows) == {"latents": 3, "changed": 2}
    assert changed(rows[:3]) is None
    found = {one["score"]: one for one in round_rows(rows, Bootstrap(num_resamples=20))}
    assert found["rules"]["difference"] == pytest.approx(0.05)
    assert found["rules"]["latents"] == 2
    assert (found["falsified"]["rules"], found["falsified"][TESTED]) == (1, 0)
    assert "sensitivity" not in found
    tested = {one["explainer"]: one for one in falsified_rows({"SAE": rows})}
    assert tested["rules"]["rules"] == 3
    assert tested["rules"]["falsified"] == pytest.approx(1 / 3)
    assert tested["rules"]["necessity"] == pytest.approx(0.3)
    assert tested["rules"]["sensitivity"] is None


class _Silent:
    """A judge that nobody asks."""

    key, separator = "silent", 0

    def ids(self, text):
        raise AssertionError("nobody asks")

    def log_probs(self, prefix, rows):
        raise AssertionError("nobody asks")


def _rows(subject, words):
    return [
        Row(one.name, explainer, "explained", text.words, one.density, 100, {}, {})
        for explainer, texts in words.items()
        for one, text in zip(subject.latents, texts, strict=True)
    ]
