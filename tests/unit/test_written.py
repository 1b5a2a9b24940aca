"""Texts written under pushes, their scores, the judge, and where texts come from."""

import math

import numpy as np
import pytest
import torch
from _features import POINT
from _steering import OPENINGS, about_z, at_home, home, placed, tokens_of  # noqa: F401

from sae.errors import ConfigError, SourceError
from sae.features.steering import Arm
from sae.features.written import Pen, Written, distinct, harmonic, scored
from sae.language.generate import drawn
from sae.probing.judge import Judge
from sae.tasks.concept import read_concept, read_openings, snippets
from sae.tasks.labelled import LabelledTexts


def pen_on(one, prompts=tuple(OPENINGS), **more):
    settings = {"draws": 1, "new_tokens": 6, "temperature": 0.0, "seed": 0, "batch_texts": 3}
    return Pen(one, prompts, **settings | more)


def test_texts_and_cross_entropies_against_a_slow_loop(placed):  # noqa: F811
    """Greedy text, token by token, with all tokens but the separator pushed, new ones too."""
    lm, prompts, direction = placed.lm, ["abc", "fedcba", "bcd"], placed.sae.W_dec[3]
    pen = pen_on(placed, prompts)
    found = pen.write(Arm("", direction), [0.0, 6.0])
    for at, size in enumerate((0.0, 6.0)):
        for i, prompt in enumerate(prompts):
            tokens = tokens_of(lm, prompt)
            start = tokens.shape[1]
            for _ in range(6):
                step = size * direction.expand(1, tokens.shape[1], -1).clone()
                step[:, 0] = 0
                logits = lm.logits(tokens, {POINT: lambda x, s=step: x + s})[:, -1]
                tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)
            assert found.tokens[at][0][i].tolist() == tokens[0].tolist()
            clean = torch.log_softmax(lm.logits(tokens).double(), -1)[0]
            ce = -np.mean([float(clean[j - 1, tokens[0, j]]) for j in range(start, start + 6)])
            assert found.ce[at, 0, i] == pytest.approx(ce, rel=1e-4)
    assert found.texts[0] != found.texts[1]


def test_draws_have_the_same_random_numbers_in_every_arm_and_at_every_size(placed):  # noqa: F811
    pen = pen_on(placed, draws=2, temperature=1.0, batch_texts=5)
    clean = pen.write(None, [0.0]).texts[0]
    pushed = pen.write(Arm("", placed.sae.W_dec[3]), [0.0, 9.0]).texts
    assert pushed[0] == clean
    assert clean[0] != clean[1]
    assert pen.write(None, [0.0], before="zz").texts[0] != clean


@pytest.mark.parametrize("batch_texts", [1, 2, 4, 40])
def test_draws_and_prompts_are_independent_whatever_is_written_at_once(placed, batch_texts):  # noqa: F811
    """At a high temperature the LM says nothing: equal texts would be equal random numbers."""
    prompts = ["abcd", "efgh", "ab", "efg"]
    hot = {"draws": 3, "temperature": 50.0}
    texts = pen_on(placed, prompts, batch_texts=batch_texts, **hot).write(None, [0.0]).texts[0]
    assert len({text for draw in texts for text in draw}) == 12
    other = pen_on(placed, prompts[::-1], **hot).write(None, [0.0]).texts[0]
    assert [draw[::-1] for draw in other] == texts  # a prompt's own numbers
    fewer = pen_on(placed, prompts, **hot | {"draws": 1}).write(None, [0.0]).texts[0]
    assert fewer == texts[:1]


def test_drawn_tokens_follow_the_distribution_at_any_temperature():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).repeat(20_000, 1)
    random = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counts = drawn(logits, 0.7, random)[:, 0].bincount(minlength=4) / 20_000
    assert counts.numpy() == pytest.approx(torch.softmax(logits[0] / 0.7, 0).numpy(), abs=0.01)
    assert set(drawn(logits, 1e-300, random)[:, 0].tolist()) == {3}
    assert drawn(logits[:2], 1.0, torch.tensor([0.0, 1 - 2**-53]).double())[:, 0].tolist() == [0, 3]


def test_loops_are_not_fluent():
    class Flat(Judge):
        def __call__(self, texts):
            return np.full(len(texts), 1.0)

    clean = Written([], [], np.array([[[2.5, 3.0], [3.5, 3.0]]]), np.array([[[1.0, 0.8]] * 2]))
    texts = [[["a", "b"]]]
    steered = Written(texts, [], np.array([[[0.1, 4.0]]]), np.array([[[0.1, 0.9]]]))
    found = scored(steered, clean, Flat(1.0, 1.0, 0, 0, None))
    np.testing.assert_allclose(found.fluency, [[[2 * 0.1, 2 * math.exp(-1)]]])
    np.testing.assert_allclose(found.concept, 2.0)
    np.testing.assert_allclose(found.score, harmonic(found.concept, found.fluency))
    assert distinct([1, 2] * 10) == pytest.approx(2 / 18)


def split_of(texts, at):
    chosen = np.random.default_rng(0).permutation(len(texts.texts))
    return [
        LabelledTexts("x", [texts.texts[i] for i in part], texts.labels[part], texts.classes)
        for part in (chosen[:at], chosen[at:])
    ]


def test_the_judge_finds_planted_words():
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(30)]
    labels = np.repeat([0, 1], 100)
    texts = [" ".join([*rng.choice(words, 6), *(["goal"] if y else [])]) for y in labels]
    judge = Judge.fit(*split_of(LabelledTexts("x", texts, labels, ("a", "b")), 120))
    assert judge.accuracy > 0.95
    assert judge.auc > 0.99
    assert judge(["word1 goal"])[0] > 0.8 > 0.4 > judge(["word1 word2"])[0]


def test_a_text_without_words_that_say_something_is_undecided():
    """A planted word and function words tell the classes, which are of unlike size."""
    rng = np.random.default_rng(3)
    words = [f"word{i}" for i in range(30)]
    labels = np.repeat([0, 1], [300, 100])
    texts = [" ".join([*rng.choice(words, 6), *(["goal", "the"] if y else ["of"])]) for y in labels]
    judge = Judge.fit(*split_of(LabelledTexts("x", texts, labels, ("a", "b")), 200))
    assert judge(["", "the the the", "of", "unheard words"]).tolist() == [0.5] * 4
    assert judge(["the goal"])[0] == judge(["goal"])[0] > 0.9


def test_the_numbers_of_a_judge_are_those_of_scikit_learn():
    """Classes of unlike size, of which some texts lack the word."""
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rng = np.random.default_rng(2)
    words = [f"word{i}" for i in range(30)]
    labels = np.repeat([0, 1], [300, 100])
    texts = [
        " ".join([*rng.choice(words, 6), *(["goal"] if y and rng.random() < 0.7 else [])])
        for y in labels
    ]
    train, test = split_of(LabelledTexts("x", texts, labels, ("a", "b")), 200)
    judge = Judge.fit(train, test)
    probability = judge(test.texts)
    assert judge.accuracy == pytest.approx(balanced_accuracy_score(test.labels, probability > 0.5))
    assert judge.auc == pytest.approx(roc_auc_score(test.labels, probability))


def test_a_judge_that_knows_nothing_is_refused():
    rng = np.random.default_rng(1)
    words = [f"word{i}" for i in range(30)]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(200)]
    made = LabelledTexts("noise", texts, np.repeat([0, 1], 100), ("a", "b"))
    with pytest.raises(ConfigError, match=r"AUC of 0\.\d\d on held-out"):
        Judge.fit(*split_of(made, 120))
    signs = LabelledTexts("signs", ["+ - !"] * 200, np.repeat([0, 1], 100), ("a", "b"))
    with pytest.raises(ConfigError, match="judge of x is empty"):
        Judge.fit(*split_of(signs, 120))
    with pytest.raises(ConfigError, match="a judge needs 20 of each"):
        Judge.fit(*split_of(made, 195))


def test_snippets_cut_texts_into_pieces(placed):  # noqa: F811
    texts = LabelledTexts("x", ["abcdefghij", "abcdefg", "xy"], np.array([1, 0, 1]), ("a", "b"))
    found = snippets(placed.lm.tokenizer, texts, [0, 1, 2], 4)
    assert list(found.texts) == ["abcd", "efgh", "ij", "abcd", "efg", "xy"]
    assert found.labels.tolist() == [1, 1, 1, 0, 0, 1]


def test_concepts_of_sets_and_of_files(monkeypatch, tmp_path):
    first = LabelledTexts("first", ["a", "b", "c"], np.array([0, 1, 1]), ("0", "1"))
    second = LabelledTexts("second", ["d", "e"], np.array([1, 0]), ("0", "1"))
    known = {"first": first, "second": second}
    monkeypatch.setattr("sae.tasks.concept.probe_sets", lambda names: [known[n] for n in names])
    both = read_concept(["first", "second"], words="x").texts
    assert (list(both.texts), both.labels.tolist()) == (["b", "c", "d"], [1, 1, 0])
    alone = read_concept(["first"], words="x").texts
    assert (list(alone.texts), alone.labels.tolist()) == (["b", "c", "a"], [1, 1, 0])
    with pytest.raises(ConfigError, match=r"eval\.steer\.words is not given"):
        read_concept(["first"])
    with pytest.raises(ConfigError, match="is a class of a CSV file"):
        read_concept(["first"], label="a", words="x")
    file = tmp_path / "three.csv"
    file.write_text("text,label\none,a\ntwo,b\nthree,c\n")
    made = read_concept(csv=str(file), label="b")
    assert (made.words, made.texts.labels.tolist()) == ("b", [0, 1, 0])
    with pytest.raises(ConfigError, match="Its classes: a, b, c"):
        read_concept(csv=str(file), label="z")
    file.write_text("text,label\none,a\ntwo,a\n")
    with pytest.raises(SourceError, match="has 1 classes"):
        read_concept(csv=str(file), label="a")


def test_prompts_of_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo \nthree\nfour\nfive\n")
    assert read_openings(str(file), 4) == ["one", "two", "three", "four"]
    assert len(read_openings(None, 16)) == 16
    file.write_text("\ufeffa\na \nb\nc\nd\n", encoding="utf-8")  # a mark of byte order
    assert read_openings(str(file), 16) == ["a", "b", "c", "d"]
    with pytest.raises(ConfigError, match="there are 16 openings"):
        read_openings(None, 64)
    file.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="has 2 different prompts; at least 4"):
        read_openings(str(file), 16)
    with pytest.raises(SourceError, match="cannot be read"):
        read_openings(str(tmp_path / "none.txt"), 16)
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(SourceError, match="UTF-8"):
        read_openings(str(file), 16)


def test_prompts_that_are_too_long_are_refused(placed):  # noqa: F811
    longest = placed.lm.max_ctx
    with pytest.raises(ConfigError, match=f"allows {longest} together"):
        pen_on(placed, ["a" * (longest - 6)])
    pen_on(placed, ["a" * (longest - 7)])
