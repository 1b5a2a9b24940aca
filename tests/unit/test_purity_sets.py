"""Purity by classes of whole texts: chance over texts, planted truth, sets from files to tables."""

import numpy as np
import pytest
import torch
from _features import CTX, make_sae, placed_on, source
from _purity import firings, one, slow_information

from sae.activations.counted import Counted, RowRule
from sae.activations.labelled import TextActivations, text_activations, token_ids
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, SourceError
from sae.evals import purity_sets as module
from sae.evals.base import Estimate
from sae.evals.controls import Control
from sae.evals.purity import PurityEval
from sae.evals.purity_sets import (
    LEAST_SETS,
    LOOKUP,
    SET_METRICS,
    SET_NUMBERS,
    OfSet,
    measured_set,
    over_sets,
)
from sae.features.firings import firings_on
from sae.features.labelled_text import LabelledText, RowLabels
from sae.features.make import all_firings
from sae.features.purity import purities
from sae.functional import entropy
from sae.metrics.bootstrap import Bootstrap
from sae.tasks.labelled import LabelledTexts

__all__ = ["source"]  # a fixture
TEXTS, LENGTH, TOKENS = 200, 30, 5
CLASSES = ("no", "yes")
SETTINGS = {"max_tokens": CTX, "shuffles": 5, "batch_rows": 100, "bootstrap": Bootstrap()}


def classes(whole=True, tokens=TOKENS, shuffles=20, own=0):
    """Texts of few tokens, half of them of each class; `own` tokens are of each class alone."""
    random = np.random.default_rng(0)
    document = np.repeat(np.arange(TEXTS), LENGTH)
    labels = random.permutation(np.arange(TEXTS) % 2)[document]
    token = random.integers(0, tokens + own, len(document))
    return LabelledText(
        token + own * ((token >= tokens) & (labels == 1)), document, document,
        np.ones(len(document), bool), {"class": RowLabels(labels, CLASSES, whole)},
        shuffles=shuffles,
    )  # fmt: skip


def of_some_texts(text, count=200):
    """Latents that fire on most tokens of a fifth of the texts, whatever their classes."""
    random = np.random.default_rng(1)
    for i in range(count):
        texts = (random.random(TEXTS) < 0.2).repeat(LENGTH)
        yield str(i), firings(text, texts & (random.random(TEXTS * LENGTH) < 0.8))


def test_a_latent_of_some_texts_says_nothing_of_classes_that_it_does_not_know():
    """Labels that are shuffled over rows take each firing for a draw of its own.

    By their chance, latents of single texts would seem to know the class.
    """
    mean, error = {}, {}
    for whole in (True, False):
        text = classes(whole)
        found = purities(text, of_some_texts(text)).values["class_given_token"]
        mean[whole], error[whole] = found.mean(), found.std() / len(found) ** 0.5
    assert abs(mean[True]) < 3 * error[True]
    assert mean[False] > 6 * error[False]


def test_words_of_one_class_do_not_raise_chance():
    """Their tokens say the class; shuffled over all texts, they would leave it to be told."""
    text = classes(own=60)
    found = purities(text, of_some_texts(text)).values["class_given_token"]
    assert abs(found.mean()) < 3 * found.std() / len(found) ** 0.5


def test_a_latent_of_one_class_has_the_value_in_closed_form():
    """It fires on 3 of 4 rows of class 1 and on 1 of 4 of class 0, all of them of one token."""
    text = classes(tokens=1)
    yes = text.labels["class"].of == 1
    fires = np.tile(np.arange(4), len(yes) // 4) < np.where(yes, 3, 1)
    found = one(text, fires)
    information = 1 - entropy(np.array([1, 3])).item()
    values = {name: numbers[0] for name, numbers in found.values.items()}
    assert values["class_information"] == pytest.approx(information, abs=2e-3)  # 30 is not 4 n
    assert values["class_uncertainty"] == pytest.approx(1, abs=2e-3)
    assert values["class_given_token"] == pytest.approx(
        values["class_information"] - values["class_information_shuffled"], rel=2e-3
    )
    assert 0 < values["class_information_shuffled"] < 0.01
    assert values["class_purity"] == pytest.approx(0.75, abs=5e-3)
    assert one(text, yes).values["class_purity"][0] == 1


def test_chance_is_that_of_classes_shuffled_over_the_texts_of_a_token():
    text, real = classes(shuffles=2), classes(shuffles=2).labels["class"].of
    fires = np.random.default_rng(2).random(TEXTS * LENGTH) < 0.1
    seen = []
    for pairs in text.shuffled["class"]:
        label = pairs.of - 2 * text.token  # pairs are numbered by token, then by class
        assert 0.4 < (label != real).mean() < 0.6
        for token in range(TOKENS):
            here = text.token == token
            texts = np.unique(text.context[here])
            moved = [set(label[here & (text.context == one)]) for one in texts]
            assert all(len(of) == 1 for of in moved), "rows of a text move together"
            assert sum(of.pop() for of in moved) == real.reshape(TEXTS, LENGTH)[texts, 0].sum()
        seen.append(slow_information(fires, label, text.token))
    found = one(text, fires).values["class_information_shuffled"][0]
    assert found == pytest.approx(np.mean(seen), rel=1e-9)


def labelled(count=120, seed=0):
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list("abcdefgh"), 8)) for _ in range(count)]
    return LabelledTexts("letters", texts, np.arange(count) % 2, CLASSES)


def planted(texts_of, width):
    """Rows of noise; in texts of class 1 every second row has an axis of its own."""

    def read(lm, point, texts, *, name, which, max_tokens):
        ids = token_ids(lm, texts, which=which, max_tokens=max_tokens)
        lengths = torch.tensor([len(own) for own in ids])
        x = 0.1 * torch.randn(int(lengths.sum()), width, generator=torch.Generator().manual_seed(0))
        label = torch.from_numpy(texts_of.labels).repeat_interleave(lengths)
        x[(label == 1) & (torch.arange(len(x)) % 2 == 0), 0] += 2
        return TextActivations(x, lengths)

    return read


def axes(width, d_sae=None):
    eye = torch.eye(width)[: d_sae or width]
    config = SAEConfig("test", "relu", width, len(eye))
    return SAE(eye.T.contiguous(), torch.full((len(eye),), -0.1), eye, torch.zeros(width), config)


def test_a_planted_class_is_found_and_controls_stand_beside(monkeypatch, source):
    of = labelled()
    width = source.split("train").d_in
    monkeypatch.setattr(module, "text_activations", planted(of, width))
    sae = placed_on(source, axes(width))
    other = axes(width)
    other.b_enc[0] = -1e6  # all but the planted latent
    controls = [Control("blind", placed_on(source, other)), Control("dense", sae, dense=True)]
    found = measured_set(of, [Control("SAE", sae)], controls, **SETTINGS)
    rows = {(row["control"], row["number"]): row for row in found.rows}
    assert {control for control, _ in rows} == {"blind", LOOKUP}, "no basis as it is"
    assert {number for _, number in rows} == set(SET_NUMBERS)
    assert {row["set"] for row in found.rows} == {"letters"}
    blind = rows["blind", "class_given_token"]
    assert blind["coverage"] > 0.5
    assert abs(blind["of_control"]) < 0.01
    assert found.facts["classes"] == {"no": 60, "yes": 60}
    assert found.facts["latents"] == width
    assert found.facts["chance"]["class_purity"] < 0.6
    assert over_sets([found], SETTINGS["bootstrap"])["class_purity"] == found.means["class_purity"]
    alone = placed_on(source, axes(width, 1))
    only = measured_set(of, [Control("SAE", alone)], [], **SETTINGS)
    assert only.means["class_purity"].value > 0.7, "noise of the other rows fires as well"
    assert only.means["class_given_token"].value > 0.1
    assert only.means["class_given_token"].low > 0.1


@pytest.mark.parametrize("sets", [2, LEAST_SETS - 1, LEAST_SETS])
def test_means_over_enough_sets_have_intervals_over_sets(sets):
    """An interval over two or three sets was just the smallest and the largest mean."""
    values = np.random.default_rng(0).random((sets, 2))
    found = [
        OfSet(
            {name: Estimate(v, 0.0, 1.0) for name, v in zip(SET_METRICS, own, strict=True)}, [], {}
        )
        for own in values.tolist()
    ]
    means = over_sets(found, SETTINGS["bootstrap"])
    for name, own in zip(SET_METRICS, values.T, strict=True):
        of = means[name]
        assert of.value == pytest.approx(own.mean())
        if sets < LEAST_SETS:
            assert of.low is of.high is None
        else:
            assert own.min() < of.low < of.value < of.high < own.max()


def test_firings_in_memory_are_those_of_the_pass_over_a_store(source):
    run = placed_on(source, make_sae(source))
    stored = all_firings(run, "test", num_tokens=10**6)
    rows = run.rows("test")
    x = torch.cat([rows.read(i) for i in range(rows.num_chunks)])
    there = np.flatnonzero(stored.counted)
    found = firings_on(run.sae, x, torch.ones(len(x), dtype=torch.bool), batch_rows=33)
    for one_, other in zip(found, stored.read(range(run.sae.d_sae)), strict=True):
        np.testing.assert_array_equal(there[one_.row], other.row)
        np.testing.assert_allclose(one_.value, other.value, rtol=1e-5)
    none = firings_on(run.sae, x, torch.zeros(len(x), dtype=torch.bool), batch_rows=33)
    assert not sum(len(one_.row) for one_ in none)


def test_rows_that_do_not_count_are_left_out(source):
    of, sae = labelled(40), make_sae(source)
    run = placed_on(source, sae)
    read = text_activations(run.lm, run.point, of.texts, name="x", which="all", max_tokens=CTX)
    norms = read.x.norm(dim=1)
    limit = float(norms.median())
    source.counted = Counted(RowRule(), (), {str(run.point): limit})
    found = measured_set(of, [Control("SAE", PlacedSAE(sae, source))], [], **SETTINGS)
    assert found.facts["vectors"] == int((norms <= limit).sum()) < len(norms)


def test_equal_texts_are_one_document(source):
    of = labelled(30)
    copies = LabelledTexts(of.name, [*of.texts, *of.texts], np.tile(of.labels, 2), of.classes)
    sae = placed_on(source, make_sae(source))
    once, twice = (module._Texts(one, sae, CTX).by_row(1) for one in (of, copies))
    assert twice.num_documents == once.num_documents == 30
    assert len(twice.rows) == 2 * len(once.rows)
    first, second = np.split(twice.context, 2)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, once.context)
    np.testing.assert_array_equal(twice.group, np.tile(once.group, 2))


def test_an_equal_text_of_another_class_is_another_document(source):
    """A document has one class: its rows move together where classes change places."""
    of = labelled(30)
    both = LabelledTexts(of.name, [*of.texts, *of.texts], np.tile(of.labels, 2), of.classes)
    both.labels[30:] = 1 - both.labels[30:]
    text = module._Texts(both, placed_on(source, make_sae(source)), CTX).by_row(1)
    assert text.num_documents == 60
    label = text.labels["class"].of
    assert all(len(set(label[text.context == one])) == 1 for one in np.unique(text.context))


def test_tokens_are_those_of_the_rows(source):
    of, lm = labelled(5), placed_on(source, make_sae(source)).lm
    for which in ("last", "all"):
        ids = token_ids(lm, of.texts, which=which, max_tokens=5)
        assert {len(own) for own in ids} == {4}
    whole = token_ids(lm, of.texts, which="all", max_tokens=CTX)
    read = text_activations(lm, source.ends.point, of.texts, name="x", which="all", max_tokens=CTX)
    assert read.lengths.tolist() == [len(own) for own in whole]


def test_a_set_in_which_no_latent_fires_often_enough_is_left_out(caplog, source):
    """It ended the run after everything else was measured."""
    sae = Control("SAE", placed_on(source, make_sae(source)))
    assert measured_set(labelled(10), [sae], [], **SETTINGS) is None
    assert "left out: letters, in whose 10 different texts no latent fires in 20" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"csv": "missing.csv"}, "missing.csv is not a file"),
        ({"csv": "one.csv"}, "one has 1 classes"),
        ({"csv": "few.csv"}, "few has 19 different texts; 20 or more are needed.*Give more texts"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_measured(
    monkeypatch, tmp_path, source, settings, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("text,label\na,x\nb,x\n")
    few = "".join(f"{i},{i % 2}\n" for i in range(19)) * 2
    (tmp_path / "few.csv").write_text("text,label\n" + few)
    monkeypatch.setattr("sae.evals.purity.require_tagger", dict)
    with pytest.raises((ConfigError, SourceError), match=message):
        PurityEval(**settings).run(placed_on(source, make_sae(source)))


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="max_texts=5 must be a whole number of at least 20"):
        PurityEval(max_texts=5)
    with pytest.raises(ConfigError, match="max_tokens=1 must be a whole number of at least 2"):
        PurityEval(max_tokens=1)
