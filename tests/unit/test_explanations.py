"""Explanations and their scores against scikit-learn, by hand, and with planted latents."""

import numpy as np
import pytest
from _explanations import CTX, WORDS, bench_of, firings, latent, placed
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from sae.explanations import summary
from sae.explanations.asking import asks
from sae.explanations.changed import TokenReader
from sae.explanations.excerpts import SIZES, repeated
from sae.explanations.explain import explained
from sae.explanations.explainers import EXPLAINERS, Explanation, TrainingText
from sae.explanations.judges import JUDGES
from sae.explanations.latents import Latent, Subject, stratified
from sae.explanations.means import mean
from sae.explanations.rules import RuleText
from sae.explanations.scores import CHANCE, auroc, next_in_circle, odd_one_out
from sae.explanations.study import SCORERS, UNEXPLAINED, study
from sae.explanations.summary import by_subject, headline, qualification, qualified_on
from sae.explanations.truth import random_classes
from sae.features.firings import Firings
from sae.metrics.bootstrap import Bootstrap

COUNTED = [name for name in EXPLAINERS if not asks(name)]
BOOTSTRAP = Bootstrap(num_resamples=200)
PLANTED = {"not": (" not",), "42": (" 42",), "fish": (" fish", " goat"), "zebra": (" zebra",),
           "blue": (" blue", " green"), "apple": (" apple",)}  # fmt: skip


@pytest.fixture(scope="module")
def texts():
    return placed(1, training=True), placed(2)


@pytest.fixture
def planted(texts):
    latents = [latent(str(i), *texts, *words) for i, words in enumerate(PLANTED.values())]
    oracle = [Explanation("".join(words)) for words in PLANTED.values()]
    return Subject("SAE", latents), oracle


def test_auroc_is_that_of_scikit_learn_with_ties():
    random = np.random.default_rng(0)
    positive, negative = random.integers(2, 9, 50) / 4, random.integers(0, 7, 400) / 4
    labels = np.repeat([1, 0], [50, 400])
    expected = roc_auc_score(labels, np.concatenate([positive, negative]))
    assert auroc(positive, negative) == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 3, 7, 100])
def test_everything_gets_another_and_one_more_latent_changes_one(count):
    names = [f"latent {i}" for i in range(count)]
    found = next_in_circle(names)
    assert sorted(found) == list(range(count))
    assert all(i != other for i, other in enumerate(found))
    more = next_in_circle([*names, "another"])
    assert sum(a != b for a, b in zip(found, more, strict=False)) == 1


def test_the_intruder_is_the_vector_least_like_the_others():
    own = np.eye(3)[[0, 0, 1]] + 0.1
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    alike, other = own[0], np.array([0.0, 0.0, 1.0])
    assert odd_one_out(own, other)
    assert not odd_one_out(own, alike)  # the third of its own is the odd one
    assert not odd_one_out(np.tile(alike, (3, 1)), alike)  # a tie is not found


def test_excerpts_stay_in_their_context_and_say_where_latents_fire(texts):
    test = texts[1]
    middle = np.array([0, CTX - 1, CTX, CTX + 10])
    start, stop = test.bounds(middle, 3)
    assert start.tolist() == [0, CTX - 4, CTX, CTX + 7]
    assert stop.tolist() == [4, CTX, CTX + 4, CTX + 14]
    words = "".join(WORDS[i] for i in test.tokens[CTX + 7 : CTX + 14]).strip()
    assert test.excerpts(middle[3:], 3) == [words]
    fires = np.zeros(len(test.tokens), bool)
    fires[CTX] = True
    assert test.any_within(fires, middle, 3).tolist() == [False, False, True, False]


def test_near_duplicates_are_found_by_thirteen_tokens_in_a_row():
    train, tokens = placed(1, training=True), placed(2).text.tokens.copy()
    tokens[5, 10:23] = train.text.tokens[7, 20:33]
    for position, other in ((9, 19), (23, 33)):  # no longer by chance
        tokens[5, position] = (train.text.tokens[7, other] + 1) % len(WORDS)
    tokens[6, 10:22] = train.text.tokens[7, 20:32]  # one token less
    test = placed(tokens=tokens)
    found = repeated(test, train).reshape(tokens.shape)
    side = SIZES["whole"]
    assert np.flatnonzero(found.any(1)).tolist() == [5]
    expected = [i for i in range(CTX) if i - side <= 10 and min(CTX, i + side + 1) >= 23]
    assert np.flatnonzero(found[5]).tolist() == expected


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ((" not",), 'the token " not"'),
        ((" not", " fish", " blue"), 'the token " not" or " fish" or " blue"'),
        ((" running", " singing"), 'words that end with "ng"'),
        ((" 42",), 'the token " 42"'),
        ((" Cat", " Paris"), "words with a capital letter"),
        ((" USA",), 'the token " USA"'),
    ],
)
def test_rules_find_a_planted_rule_with_f1_of_1_on_test_contexts(texts, words, rule):
    train, test = texts
    on_train, on_test = RuleText(train, train.counted), RuleText(test, test.counted)
    (found,) = on_train.best(firings(train, words).row)
    assert set(found.words.split()) == set(rule.split())
    assert on_test.fit(found, firings(test, words).row) == (1.0, 1.0, 1.0)


def test_a_rule_about_what_came_before_is_found(texts):
    places = []
    for of in texts:
        after = np.roll(of.tokens, 1) == WORDS.index(" zebra")
        after[::CTX] = False
        places.append(np.flatnonzero(after & of.counted))
    (rule,) = RuleText(texts[0], texts[0].counted).best(places[0])
    assert rule.words == 'what follows the word "zebra"'
    assert RuleText(texts[1], texts[1].counted).fit(rule, places[1]).f1 == 1.0


def test_precision_recall_and_f1_are_those_of_scikit_learn(texts):
    train, test = texts
    (rule,) = RuleText(train, train.counted).best(firings(train, (" not",)).row)
    fired = np.random.default_rng(0).permutation(np.flatnonzero(test.counted))[:900]
    truth = np.isin(np.arange(len(test.tokens)), fired)[test.counted]
    predicted = (test.tokens == WORDS.index(" not"))[test.counted]
    rules = RuleText(test, test.counted)
    found = rules.fit(rule, fired)
    assert found.precision == pytest.approx(precision_score(truth, predicted))
    assert found.recall == pytest.approx(recall_score(truth, predicted))
    assert found.f1 == pytest.approx(f1_score(truth, predicted))
    always = f1_score(truth, np.ones_like(predicted))
    assert rules.base_rate(fired) == pytest.approx(always)


def test_oracle_explanations_score_1_and_deranged_ones_a_half(texts, planted):
    subject, oracle = planted
    test = RuleText(texts[1], texts[1].counted)
    rows = study(subject, {"oracle": oracle}, bench_of(texts[1]), test)
    assert {row.state for row in rows} == {"explained"}
    for name in ("embedding", "embedding_near"):
        assert min(row.values[name] for row in rows) > 0.95
        found = mean([row.values[f"{name}_deranged"] for row in rows], BOOTSTRAP)
        assert found.low - 0.02 <= 0.5 <= found.high + 0.02
        for row in rows:
            assert row.deciles[name].mean() == pytest.approx(row.values[name], abs=0.02)
    near = [row.values["intruder_near"] for row in rows]
    assert min(near) > 2 * CHANCE


def test_random_sets_have_no_odd_one_out(texts, planted):
    subject, oracle = planted
    bench = bench_of(texts[1], pool=6000)
    rows = study(random_classes(subject, bench.pool), {"oracle": oracle}, bench, None)
    assert np.mean([row.values["intruder"] for row in rows]) == pytest.approx(CHANCE, abs=0.08)


def test_hard_negatives_are_excerpts_where_a_partner_fires(texts):
    train, test = texts
    partner = firings(test, (" not",)).row
    one = latent("0", train, test, " zebra", partners=partner)
    two = latent("1", train, test, " fish")
    words = [Explanation("not"), Explanation("fish")]
    first, second = study(Subject("SAE", [one, two]), {"x": words}, bench_of(test), None)
    # the explanation names the partner: it is worse than chance against the partner's excerpts
    assert first.values["embedding_near_hard"] < 0.5 < second.values["embedding_near"]
    assert np.isnan(second.values["embedding_near_hard"])


def test_states_say_why_a_latent_has_no_score(texts):
    train, test = texts
    few = Firings(np.arange(1, 10) * CTX + 5, np.ones(9, np.float32))
    latents = [latent("0", train, test, " not"), latent("1", train, test, " fish"),
               Latent("2", firings(train, (" not",)), few, 0.1),
               Latent("3", few, firings(test, (" not",)), 0.1)]  # fmt: skip
    words = [Explanation("not"), "failed", Explanation("not"), Explanation("not")]
    rows = study(Subject("SAE", latents), {"x": words}, bench_of(test), None)
    assert [row.state for row in rows] == ["explained", "failed", "too rare", "too rare"]
    assert set(rows[1].values) == set(UNEXPLAINED)  # they read no explanation
    assert rows[2].values == {}


def test_explainers_refuse_the_test_text(texts):
    train, test = texts
    with pytest.raises(AssertionError, match="never read the test text"):
        TrainingText(test, RuleText(test, test.counted))
    text = TrainingText(train, RuleText(train, train.counted))
    one = latent("0", train, test, " not")
    nowhere = Latent("0", one.train, Firings(np.zeros(0, int), np.zeros(0)), 0.1)
    for name in COUNTED:  # what the test text says changes no explanation
        explainer = EXPLAINERS[name](text, TokenReader({"0": WORDS.index(" not")}))
        assert explainer.explained([one], None) == explainer.explained([nowhere], None)


def test_each_explainer_puts_a_latent_into_words(texts):
    train, test = texts
    text = TrainingText(train, RuleText(train, train.counted))
    one = latent("7", train, test, " not", raised=(" never", " none", "never"))
    subject = Subject("SAE", [one], TokenReader({"7": WORDS.index(" not")}))
    found = explained(subject, text, COUNTED, {"7": "mine", "9": "nobody's"})
    words = {
        name: texts[0].words for name, texts in found.items() if isinstance(texts[0], Explanation)
    }
    assert words == {"rules": 'the token " not"', "tokens": 'the token " not"',
                     "tested": 'the token " not"', "output": "never, none", "given": "mine",
                     }  # fmt: skip


def test_the_bench_draws_four_of_each_decile_out_of_the_pool_first(texts):
    train, test = texts
    bench = bench_of(test, pool=3000)
    fired = firings(test, (" not", " fish"))
    place, decile = bench.drawn(fired, 0)
    assert np.bincount(decile).tolist() == [4] * 10
    value = dict(zip(fired.row.tolist(), fired.value.tolist(), strict=True))
    means = [np.mean([value[p] for p in place[decile == d].tolist()]) for d in range(10)]
    assert means == sorted(means, reverse=True)
    assert np.isin(place, bench.pool).mean() > 0.9
    for d in range(10):
        assert len(set((place[decile == d] // CTX).tolist())) == 4


def test_texts_are_embedded_once_and_found_again(texts):
    bench = bench_of(texts[1], pool=300)
    encoder = bench.embeddings._encoder
    _ = bench.pooled
    seen = encoder.texts
    bench.embed(bench.pool, "whole")
    assert encoder.texts == seen
    again = bench_of(texts[1], pool=300)  # another process: out of the cache
    _ = again.pooled
    assert again.embeddings._encoder.texts == 0


def test_latents_are_drawn_from_all_bins_of_density():
    density = np.array([0, 2e-4, 2e-4, 2e-4, 0.05, 0.5])
    assert len(stratified(density, 2)) == 2
    assert {i > 3 for i in stratified(density, 2)} == {True, False}
    assert stratified(density, 99) == [1, 2, 3, 4, 5]


def test_a_scorer_qualifies_by_telling_true_explanations_from_wrong_ones(
    texts, planted, monkeypatch
):
    subject, oracle = planted
    rules = RuleText(texts[0], texts[0].counted)
    ruled = explained(subject, TrainingText(texts[0], rules), ["rules"])
    bench = bench_of(texts[1], pool=6000)
    rows = study(subject, {"oracle": oracle} | ruled, bench, RuleText(texts[1], texts[1].counted))
    random = study(random_classes(subject, bench.pool, 1), {"oracle": oracle}, bench, None)
    found = qualification({"tokens": (rows, random), "noise": (random, random)}, BOOTSTRAP)
    assert not any(qualified_on(found).values())  # six classes are too few, however well it does
    monkeypatch.setattr(summary, "LEAST_LATENTS", 6)
    found = qualification({"tokens": (rows, random), "noise": (random, random)}, BOOTSTRAP)
    kinds = qualified_on(found)
    assert kinds["embedding_near"] == kinds["rules"] == kinds["intruder_near"] == ["tokens"]
    assert {row["scorer"] for row in found if row["kind"] == "noise"} == {
        "embedding", "embedding_near", *UNEXPLAINED
    }  # fmt: skip


def test_a_wrong_rule_is_scored_like_a_right_one(texts):
    """Latents that mean the same have explanations that are as good for each other."""
    subject = Subject("SAE", [latent(str(i), *texts, " not") for i in range(3)])
    rule = RuleText(texts[0], texts[0].counted)
    words = explained(subject, TrainingText(texts[0], rule), ["rules"])
    rows = study(subject, words, bench_of(texts[1]), RuleText(texts[1], texts[1].counted))
    assert [row.values["rules_deranged"] for row in rows] == [row.values["rules"] for row in rows]


def test_intruders_need_no_explanation(texts, planted):
    subject, oracle = planted
    given = ["failed", *oracle[1:]]
    rows = study(subject, {"oracle": given}, bench_of(texts[1]), None)
    assert rows[0].state == "failed"
    assert "embedding" not in rows[0].values
    assert rows[0].values["intruder_near"] > CHANCE


def test_the_headline_holds_what_qualified(texts, planted, monkeypatch):
    monkeypatch.setattr(summary, "LEAST_LATENTS", 2)
    subject, oracle = planted
    rows = study(subject, {"rules": oracle, "tokens": oracle}, bench_of(texts[1]), None)
    table = list(by_subject({"SAE": rows, "pca top-k": rows}, BOOTSTRAP))
    qualified = dict.fromkeys((*SCORERS, *JUDGES), [])
    assert headline(table, qualified) == {}
    found = headline(table, qualified | {"embedding_near": ["tokens"], "intruder": ["topics"]})
    assert set(found) == {
        "embedding_near", "embedding_near_over_pca_topk", "intruder", "intruder_over_pca_topk"
    }  # fmt: skip
    own = [row.values["embedding_near"] for row in rows if row.explainer == "rules"]
    assert found["embedding_near"][0] == pytest.approx(np.mean(own))
    assert found["intruder_over_pca_topk"][0] == pytest.approx(0)


def test_means_stand_beside_derangements_and_the_sae(texts, planted, monkeypatch):
    monkeypatch.setattr(summary, "LEAST_LATENTS", 2)
    subject, oracle = planted
    wrong = oracle[1:] + oracle[:1]
    rows = study(subject, {"rules": oracle, "tokens": wrong}, bench_of(texts[1]), None)
    table = list(by_subject({"SAE": rows, "other": rows}, BOOTSTRAP))
    of = {
        (row["subject"], row["scorer"]): row for row in table if row["explainer"] in ("", "rules")
    }
    row = of["SAE", "embedding_near"]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["over_deranged"] == pytest.approx(row["value"] - row["deranged"])
    assert of["other", "embedding_near"]["sae_less_this"] == pytest.approx(0)
    assert row["over_tokens_low"] > 0  # the control is another latent's explanation
    assert of["SAE", "intruder"]["deranged"] == CHANCE
