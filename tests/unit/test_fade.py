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
        for name in NUMBERS:
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
