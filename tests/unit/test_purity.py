"""Purity of latents: formulas against slow loops, planted truth, groups of documents, deciles."""

import math

import numpy as np
import pytest
from _purity import firings, one, slow_information
from sklearn.metrics import mutual_info_score

from sae import functional
from sae.features import purity as module
from sae.features.labelled_text import LabelledText, RowLabels
from sae.features.purity import chance, purities
from sae.kernels.tallies import sums_within, sums_without

ROWS, TOKENS, LABELS = 6000, 30, 3
NAMES = ("NOUN", "PRON", "VERB")


@pytest.fixture(scope="module")
def text():
    """Tokens 0 to 9 are always nouns; of the others half of the rows are verbs, half pronouns."""
    random = np.random.default_rng(0)
    token = random.integers(0, TOKENS, ROWS) + 5
    label = np.where(token < 15, 0, random.integers(1, LABELS, ROWS))
    document = np.arange(ROWS) // 40
    counted = random.random(ROWS) > 0.1
    labels = {"pos": RowLabels(label, NAMES)}
    return LabelledText(token, document, np.arange(ROWS) // 20, counted, labels, shuffles=20)


def test_entropies_and_purities_of_counts():
    assert functional.entropy(np.array([1, 1, 2])).item() == pytest.approx(1.5)
    assert np.isnan(functional.entropy(np.zeros((3, 1), int))).all()
    assert functional.purity(np.array([3]), np.array([4])).tolist() == [0.75]
    half = functional.label_similarity(np.array([1, 0]), np.array([1, 1])).item()
    assert half == pytest.approx(1 - (0.75 * math.log2(4 / 3) + 0.25 * 2 - 0.5))  # H(3/4) - 1/2
    assert np.isnan(functional.label_similarity(np.array([0, 0]), np.array([1, 1])))


def test_information_is_that_of_a_slow_loop_and_of_scikit_learn(text):
    random = np.random.default_rng(1)
    token, label = text.token[text.rows], text.labels["pos"].of[text.rows]
    fires = random.random(len(token)) < np.where(label == 2, 0.3, 0.1)
    cell = token * LABELS + label
    bits = [
        functional.firing_bits(np.bincount(of[fires], minlength=of.max() + 1), np.bincount(of))
        for of in (token, cell, np.zeros_like(token), label)
    ]
    found = (bits[0] - bits[1]) / len(token)
    assert found == pytest.approx(slow_information(fires, label, token), rel=1e-9)
    plain = mutual_info_score(fires, label) / math.log(2)
    assert (bits[2] - bits[3]) / len(token) == pytest.approx(plain, rel=1e-9)


@pytest.mark.slow
def test_compiled_sums_are_those_of_plain_counts():
    random = np.random.default_rng(2)
    kinds, groups, start = 9, 4, np.array([0, 50, 50, 300])
    kind, group = random.integers(0, kinds, 300), random.integers(0, groups, 300)
    by_group = random.integers(100, 200, (kinds, groups))
    total = np.column_stack([by_group.sum(1), by_group])
    found = sums_without(kind, group, start, total)
    within, largest = sums_within(kind, group, start, kinds, groups)
    for i, (a, b) in enumerate(zip(start[:-1], start[1:], strict=True)):
        own, of = kind[a:b], group[a:b]
        for g in range(-1, groups):
            fired = np.bincount(own[of != g], minlength=kinds)
            rows = total[:, 0] - (total[:, 1 + g] if g >= 0 else 0)
            assert found.bits[i, 1 + g] == pytest.approx(functional.firing_bits(fired, rows))
            assert found.largest[i, 1 + g] == fired.max()
            entropy = functional.entropy_of_sums(
                np.array(fired.sum()), np.array(found.n_log_n[i, 1 + g])
            )
            np.testing.assert_allclose(entropy, functional.entropy(fired), atol=1e-12)
            if g >= 0:
                inside = np.bincount(own[of == g], minlength=kinds)
                assert largest[i, g] == inside.max()
                np.testing.assert_allclose(
                    functional.entropy_of_sums(np.array(inside.sum()), np.array(within[i, g])),
                    functional.entropy(inside), atol=1e-12,
                )  # fmt: skip


@pytest.mark.slow
def test_a_latent_that_is_a_function_of_the_token_says_nothing_more(text):
    found = one(text, text.token % 3 == 0)
    assert found.values["pos_given_token"].tolist() == [0.0]
    assert found.values["pos_information"][0] == pytest.approx(0, abs=1e-12)
    assert not found.influence["pos_given_token"].any()


def test_a_latent_of_verbs_among_ambiguous_tokens_says_all(text):
    verbs = text.labels["pos"].of == 2
    found = one(text, verbs)
    assert found.values["pos_purity"].tolist() == [1.0]
    assert found.label == {"pos": ["VERB"]}
    # it fires exactly on verbs: what is uncertain given the token is what the label says
    information, uncertainty = found.values["pos_information"], found.values["pos_uncertainty"]
    assert information[0] == pytest.approx(uncertainty[0])
    assert uncertainty[0] > 0.5, "two of three tokens are ambiguous: about 2/3 bit"
    share = found.values["pos_given_token"][0]
    chance = found.values["pos_information_shuffled"][0] / uncertainty[0]
    assert share == pytest.approx(1 - chance)
    assert share > 0.98


def test_chance_is_taken_off(text):
    """Firing at random: the plug-in information is above 0, what is reported is not."""
    random = np.random.default_rng(3)
    latents = [(str(i), firings(text, random.random(ROWS) < 0.02)) for i in range(60)]
    found = purities(text, latents)
    bits, plugin = found.values["pos_bits"], found.values["pos_information"]
    error = bits.std() / len(bits) ** 0.5
    assert plugin.mean() > 10 * error
    assert abs(bits.mean()) < 4 * error


def test_shuffled_labels_keep_their_tokens(text):
    pairs, every = text.pairs["pos"], text.shuffled["pos"]
    for of in (pairs.of, *(shuffled.of for shuffled in every)):
        tokens = {}
        for pair, token in zip(of[text.rows], text.token[text.rows], strict=True):
            assert tokens.setdefault(pair, token) == token
    for shuffled in every:
        np.testing.assert_array_equal(shuffled.rows[:, 0], pairs.rows[:, 0])
    moved = (every[0].of != pairs.of)[text.rows].mean()
    assert 0.2 < moved < 0.5, "half of two thirds of the rows"


def test_influence_is_that_of_leaving_documents_out(text):
    random = np.random.default_rng(4)
    value = random.random(ROWS)
    fires = (random.random(ROWS) < 0.1) | ((text.labels["pos"].of == 2) & (value > 0.7))
    found = one(text, fires, value)

    def without(group):
        kept = text.counted & (text.group != group)
        less = LabelledText(text.token, np.arange(ROWS) // 40, text.context, kept, text.labels)
        return {name: numbers[0] for name, numbers in one(less, fires, value).values.items()}

    first, second = without(0), without(7)
    for name, numbers in found.influence.items():
        assert numbers.sum() == pytest.approx(0, abs=1e-9)
        # the chance level is that of all rows, so it cancels in a difference
        plain = "pos_information" if name == "pos_bits" else name
        if name not in ("pos_given_token", "pos_consistency"):  # borders of deciles stay
            moved = (numbers[0, 0] - numbers[0, 7]) / (text.num_groups - 1)
            assert moved == pytest.approx(second[plain] - first[plain], abs=1e-12)
            assert moved != 0
    chance = found.values["pos_information_shuffled"][0]
    shares = [(one["pos_information"] - chance) / one["pos_uncertainty"] for one in (first, second)]
    moved = found.influence["pos_given_token"][0, [0, 7]] @ [1, -1] / (text.num_groups - 1)
    assert moved == pytest.approx(shares[1] - shares[0])


def test_deciles_hold_equally_many_the_strongest_first(text):
    """Strong firings are nouns, weak ones anything."""
    random = np.random.default_rng(5)
    value = random.random(ROWS)
    noun = text.labels["pos"].of == 0
    fires = random.random(ROWS) < 0.5
    value = np.where(noun, value + 1, value)
    found = one(text, fires, value)
    row = firings(text, fires).row
    order = row[np.argsort(-value[row], kind="stable")]
    for decile in range(10):
        part = [i for k, i in enumerate(order) if k * 10 // len(order) == decile]
        counts = np.bincount(text.labels["pos"].of[part], minlength=LABELS)
        tokens = np.bincount(text.token[part])
        assert found.deciles["pos_purity"][0, decile] == pytest.approx(counts.max() / len(part))
        assert found.deciles["token_entropy"][0, decile] == pytest.approx(
            functional.entropy(tokens).item()
        )
    ends = [order[: len(order) // 5 + 1], order[-(len(order) // 5) :]]
    similar = functional.label_similarity(
        *(np.bincount(text.labels["pos"].of[part], minlength=LABELS) for part in ends)
    )
    assert found.values["pos_consistency"][0] == pytest.approx(similar.item(), abs=0.02)
    assert found.values["pos_consistency_shuffled"][0] > 0.98


def test_rare_latents_are_counted_and_not_measured(text):
    few = np.zeros(ROWS, bool)
    few[text.rows[:15]] = True
    found = purities(text, [("0", firings(text, few)), ("1", firings(text, np.zeros(ROWS, bool)))])
    assert (found.latent, found.rare) == ([], 1)


def test_batches_do_not_change_numbers(text, monkeypatch):
    random = np.random.default_rng(6)
    latents = [(str(i), firings(text, random.random(ROWS) < 0.2, random.random(ROWS)))
               for i in range(5)]  # fmt: skip
    whole = purities(text, latents)
    monkeypatch.setattr(module, "_BATCH_FIRINGS", 1)
    apart = purities(text, latents)
    assert whole.latent == apart.latent == list("01234")
    for name in whole.values:
        if not name.endswith("consistency_shuffled"):
            np.testing.assert_array_equal(whole.values[name], apart.values[name])


def test_the_lookup_of_tokens_is_pure_and_says_nothing(text):
    found = purities(text, text.lookup())
    assert len(found.latent) == TOKENS
    assert found.latent[0] == "5", "ids as in the vocabulary"
    assert found.values["token_purity"].tolist() == [1.0] * TOKENS
    assert found.values["pos_given_token"].tolist() == [0.0] * TOKENS
    assert found.firings.sum() == len(text.rows)
    assert np.isnan(found.values["pos_consistency"]).all(), "it fires or does not: no deciles"


def test_chance_is_a_latent_that_fires_everywhere(text):
    found = chance(text)
    counts = np.bincount(text.labels["pos"].of[text.rows])
    assert found["pos_purity"] == pytest.approx(counts.max() / counts.sum())
    assert found["token_entropy"] == pytest.approx(
        functional.entropy(np.bincount(text.token[text.rows])).item()
    )
