"""`fade` where the answer is known, and its parts against scikit-learn."""

import numpy as np
import pytest
import torch
from _features import source
from _labelled import planted
from sklearn.metrics import average_precision_score, roc_auc_score

from sae.activations.labelled import TextActivations, text_activations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError, SourceError
from sae.evals import fade
from sae.evals.fade import NUMBERS, SHUFFLED, FadeEval, auroc, cut, strongest
from sae.features.faithfulness import FACTORS, PushedTexts, faithfulness
from sae.features.written import Pen
from sae.probing.codes import random_sae
from sae.tasks.labelled import LabelledTexts

__all__ = ["source"]  # a fixture
D_IN = 32


def test_auroc_is_that_of_scikit_learn_with_ties():
    random = np.random.default_rng(0)
    values, positive = random.integers(0, 5, (60, 4)) / 2, random.random(60) < 0.4
    found = auroc(torch.from_numpy(values).float(), torch.from_numpy(positive))
    expected = [roc_auc_score(positive, values[:, j]) for j in range(4)]
    np.testing.assert_allclose(found.numpy(), expected)


def sets(count=4, texts=120):
    for n in range(count):
        labels = np.arange(texts) % 2
        yield LabelledTexts(f"set{n}", [f"{n} {i}" for i in range(texts)], labels, ("no", "yes"))


def read(signal):
    """Texts of three rows; the second one of class 1 has `signal` along an axis of its set."""

    def of(lm, point, texts, *, name, which, max_tokens):
        assert which == "all"
        generator = torch.Generator().manual_seed(len(name))
        x = 0.3 * torch.randn(3 * len(texts), D_IN, generator=generator)
        if name != "passages":
            for i, text in enumerate(texts):
                x[3 * i + 1, int(text.split()[0])] += signal * (i % 2)
        return TextActivations(x, torch.full((len(texts),), 3))

    return of


def run(monkeypatch, source, signal, **settings):
    monkeypatch.setattr(fade, "probe_sets", lambda names: list(sets()))
    monkeypatch.setattr(fade, "text_activations", read(signal))
    sae = planted(torch.eye(D_IN)[:4], torch.full((4,), 1.0))
    return FadeEval(resamples=50, max_texts=60, **settings).run(PlacedSAE(sae, source))


def test_planted_concepts_are_clear_responsive_and_pure(monkeypatch, source):
    result = run(monkeypatch, source, 4.0)
    rows = result.tables["sets"].rows()
    for n in range(4):
        own = {row["dictionary"]: row for row in rows if row["set"] == f"set{n}"}
        assert own["SAE"]["latent"] == str(n)
        assert own["neurons"]["latent"] == str(n)  # the axis itself
        for name in NUMBERS[:3]:
            assert own["SAE"][name] == pytest.approx(1, abs=0.02)
    assert result.metrics["clarity"].value == pytest.approx(1, abs=0.02)
    assert result.metrics["responsiveness_over_random"].low > 0
    over = result.metrics["responsiveness_over_shuffled_labels"]
    assert over.low > 0.2


def test_without_a_concept_there_is_nothing(monkeypatch, source):
    result = run(monkeypatch, source, 0.0)
    for name in ("responsiveness", "clarity"):
        assert abs(result.metrics[name].value) < 0.25
    assert result.metrics["purity"].value == pytest.approx(0.5, abs=0.15)
    assert {row["dictionary"] for row in result.tables["sets"].rows()} == {
        "SAE", SHUFFLED, "neurons", "random",
    }  # fmt: skip


def test_clarity_does_not_tell_short_texts_from_long_passages(monkeypatch, source):
    """The largest of 40 activations is above the largest of 2, whatever the text is about."""

    def of(lm, point, texts, *, name, which, max_tokens):
        length = 40 if name == "passages" else 2
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        x = torch.randn(length * len(texts), D_IN, generator=generator)
        return TextActivations(x, torch.full((len(texts),), length))

    monkeypatch.setattr(fade, "probe_sets", lambda names: list(sets()))
    monkeypatch.setattr(fade, "text_activations", of)
    sae = planted(torch.eye(D_IN)[:4], torch.full((4,), 1.0))
    rows = FadeEval(resamples=50, max_texts=60).run(PlacedSAE(sae, source)).tables["sets"].rows()
    for name in ("SAE", "neurons", "random"):
        clarity = [row["clarity"] for row in rows if row["dictionary"] == name]
        assert abs(np.mean(clarity)) < 0.25


def test_rows_that_do_not_count_do_not_decide_the_random_directions(monkeypatch, source):
    seen, plain = [], read(1.0)

    def of(*args, **more):
        x, lengths = plain(*args, **more)
        x[::100] = 1e6
        return TextActivations(x, lengths)

    def spied(sae, l0, mean, seed):
        seen.append((l0, mean))
        return random_sae(sae, l0, mean, seed)

    monkeypatch.setattr(fade, "random_sae", spied)
    monkeypatch.setattr(fade, "probe_sets", lambda names: list(sets()))
    monkeypatch.setattr(fade, "text_activations", of)
    sae = planted(torch.eye(D_IN)[:4], torch.full((4,), 1.0))
    FadeEval(resamples=50, max_texts=60).run(PlacedSAE(sae, source))
    for labelled, (l0, mean) in zip(sets(), seen, strict=True):
        x = plain(None, None, labelled.texts, name="set0", which="all", max_tokens=9).x
        x = x[torch.arange(len(x)) % 100 > 0]
        torch.testing.assert_close(mean, x.mean(0))
        assert l0 == pytest.approx(float((sae.encode(x) > 0).sum(1).float().mean()))


def test_texts_are_cut_to_the_lengths_of_others_in_turn():
    x, lengths = torch.arange(11.0)[:, None], torch.tensor([5, 2, 4])
    found = cut(TextActivations(x, lengths), torch.tensor([3, 4]))
    assert found.lengths.tolist() == [3, 2, 3]
    assert found.x[:, 0].tolist() == [0, 1, 2, 5, 6, 7, 8, 9]


def test_the_beginning_of_a_text_has_the_rows_of_a_shorter_text(source):
    one = PlacedSAE(planted(torch.eye(D_IN)[:4], torch.ones(4)), source)
    whole, part = (
        text_activations(one.lm, one.point, [text], name="x", which="all", max_tokens=30)
        for text in ("abc hgf", "abc")
    )
    torch.testing.assert_close(cut(whole, part.lengths).x, part.x)


def test_passages_hold_no_separators(source):
    one = PlacedSAE(planted(torch.eye(D_IN)[:4], torch.ones(4)), source)
    separator = one.lm.tokenizer.convert_ids_to_tokens(one.lm.separator_id)
    texts = FadeEval(max_tokens=9)._passages(one, "test")
    assert (source.store("test").tokens == one.lm.separator_id).any()
    assert len(texts) == len(source.store("test").tokens)
    assert not [text for text in texts if separator in text]
    lengths = [len(one.lm.tokenizer(text)["input_ids"]) for text in texts]
    assert max(lengths) == 8


def test_numbers_are_those_of_scikit_learn(monkeypatch, source):
    result = run(monkeypatch, source, 1.2)
    row = next(row for row in result.tables["sets"].rows() if row["dictionary"] == "SAE")
    (labelled, *_) = sets()
    sae = planted(torch.eye(D_IN)[:4], torch.full((4,), 1.0))
    placed = PlacedSAE(sae, source)
    texts = read(1.2)(None, None, labelled.texts, name="set0", which="all", max_tokens=9)
    values = strongest(sae, texts, placed)[:, int(row["latent"])].numpy()
    order = torch.randperm(120, generator=torch.Generator().manual_seed(42)).numpy()
    test = order[60:]
    y = labelled.labels[test]
    assert row["responsiveness"] == pytest.approx(2 * roc_auc_score(y, values[test]) - 1)
    assert row["purity"] == pytest.approx(average_precision_score(y, values[test]))


def test_the_strongest_is_a_loop_over_tokens(source):
    sae = planted(torch.eye(D_IN)[:4], torch.full((4,), 0.1))
    x = torch.randn(9, D_IN, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([2, 4, 3])
    found = strongest(sae, TextActivations(x, lengths), PlacedSAE(sae, source), batch_rows=2)
    f, start = sae.encode(x), 0
    for row, length in zip(found, lengths.tolist(), strict=True):
        torch.testing.assert_close(row, f[start : start + length].max(0).values)
        start += length


def test_sets_of_three_classes_and_other_sources_are_refused(monkeypatch, source):
    three = LabelledTexts("three", ["a", "b", "c"], np.arange(3), ("0", "1", "2"))
    monkeypatch.setattr(fade, "probe_sets", lambda names: [three])
    sae = planted(torch.eye(D_IN)[:4], torch.full((4,), 1.0))
    with pytest.raises(SourceError, match="three: fade takes sets of two classes"):
        FadeEval().run(PlacedSAE(sae, source))
    with pytest.raises(ConfigError, match="needs the tokens"):
        FadeEval().measure([PlacedSAE(sae, lambda sae: None)], "test")


def test_faithfulness_is_fades_formula_in_a_slow_loop():
    random = np.random.default_rng(0)
    rated, clean = random.random((6, 2, 16)) < 0.4, random.random((2, 16)) < 0.3
    rates = [np.mean([rated[m, d, o] for d in range(2) for o in range(0, 16, 2)]) for m in range(6)]
    m = rates.index(max(rates))
    own = np.mean([rated[m, d, o] for d in range(2) for o in range(1, 16, 2)])
    base = np.mean([clean[d, o] for d in range(2) for o in range(1, 16, 2)])
    found = faithfulness(rated, clean, FACTORS)
    assert found.factor == FACTORS[m]
    assert found.value == pytest.approx((own - base) / (1 - base))
    most = max(rated[m].mean() for m in range(6))
    assert found.published == pytest.approx(max(0, (most - clean.mean()) / (1 - clean.mean())))


def test_pushes_without_an_effect_gain_nothing_where_the_published_maximum_does_not():
    random = np.random.default_rng(1)
    found = [
        faithfulness(random.random((6, 2, 16)) < 0.3, random.random((2, 16)) < 0.3, FACTORS)
        for _ in range(2000)
    ]
    assert -0.1 < np.mean([one.value for one in found]) < 0.01
    assert np.mean([one.published for one in found]) > 0.1


def test_an_lm_that_always_writes_the_concept_has_no_faithfulness():
    found = faithfulness(np.ones((2, 1, 4), bool), np.ones((1, 4), bool), (1.0, 2.0))
    assert np.isnan(found.value)
    assert np.isnan(found.published)


class Scribe(Pen):
    """A pen whose texts are about a sport while one axis is pushed by more than 5."""

    def __init__(self, one, prompts, *, draws, **settings):
        self.shape = draws, len(prompts)
        self.sizes = []

    def texts(self, arm, sizes):
        self.sizes = sizes
        draws, prompts = self.shape
        about = [arm is not None and bool(arm.direction[2] * size > 5) for size in sizes]
        return [
            [["rugby match won" if one else "bread with butter"] * prompts] * draws for one in about
        ]


def about_sport(names):
    words = ["bread with butter", "rugby match won"]
    labels = np.arange(120) % 2
    texts = [f"2 {words[label]} {i}" for i, label in enumerate(labels)]
    return [LabelledTexts("sport", texts, labels, ("no", "yes"))]


def test_a_latent_that_makes_the_lm_write_the_concept_is_faithful(monkeypatch, source):
    monkeypatch.setattr(fade, "Pen", Scribe)
    monkeypatch.setattr(fade, "probe_sets", about_sport)
    monkeypatch.setattr(fade, "text_activations", read(4.0))
    sae = planted(torch.eye(D_IN)[:4], torch.full((4,), 1.0))
    result = FadeEval(resamples=50, max_texts=60).run(PlacedSAE(sae, source))
    found = {row["dictionary"]: row for row in result.tables["sets"].rows()}
    assert found["SAE"]["latent"] == "2"
    assert found["SAE"]["faithfulness"] == 1
    assert found["SAE"]["published_faithfulness"] == 1
    assert found["SAE"]["judge_auc"] == 1
    assert found["neurons"]["faithfulness"] == 1  # the same axis
    assert found["random"]["faithfulness"] < 1 or found["random"]["factor"] >= 10
    assert result.metrics["faithfulness"].value == 1
    assert result.tokens["sets with a judge"] == result.tokens["sets"] == 1


def test_a_push_is_a_multiple_of_the_largest_activation():
    pen = Scribe(None, ["a", "b", "c", "d"], draws=1)
    writer = PushedTexts(pen, (-10.0, 1.0))

    def judge(texts):
        return np.array([float("rugby" in text) for text in texts])

    found = writer.faithfulness(judge, 3 * torch.eye(8)[2], 4.0)
    assert pen.sizes == [-120.0, 12.0]
    assert found.value == 1
    assert found.factor == 1


def test_nothing_is_written_without_factors_or_without_a_judge(monkeypatch, source, caplog):
    silent = run(monkeypatch, source, 4.0, factors=[])
    assert "faithfulness" not in silent.metrics or silent.metrics["faithfulness"].value is None
    assert "has no faithfulness" not in caplog.text
    loud = run(monkeypatch, source, 4.0)  # the texts of these sets are numbers alone
    assert "set0 has no faithfulness" in caplog.text
    assert loud.tables["sets"].rows()[0]["faithfulness"] is None
