"""`absorption` with planted codes, a slow loop, and a tiny LM with words of its own."""

import numpy as np
import pytest
import torch
from _evals import Rows, place
from _labelled import context_of, planted
from _spelling import planted_letters, worded_lm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, SourceError
from sae.evals import Bootstrap, EvalResult
from sae.evals.absorption import AbsorptionEval, measure
from sae.functional.absorption import absorbed, f1, num_split
from sae.language.text import tokenise
from sae.probing import linear
from sae.probing.logistic import sparse_scores
from sae.tasks.first_letters import LETTERS, first_letter, prompt, prompts, vocabulary_words
from sae.types import Point

pytestmark = pytest.mark.slow

FEW = Bootstrap(num_resamples=20)
SMALL = {"num_words": 300, "num_examples": 3, "min_letters": 1, "min_probe_f1": 0.0}


@pytest.fixture(scope="module")
def lm():
    return worded_lm()


def measured(kind: str):
    made = planted_letters(kind)
    letters, right = measure(
        made.W_dec, made.part(slice(4000)), made.part(slice(4000, None)),
        max_k=4, f1_jump=0.03, seed=0,
    )  # fmt: skip
    assert right.all()
    assert [one.letter for one in letters] == ["a", "b", "c"]
    assert all(one.probe_f1 == 1 for one in letters)
    return made, letters


def test_planted_absorption():
    made, letters = measured("absorbed")
    for i, one in enumerate(letters):
        assert one.latents in ([i], [i + 3])
        expected = made.absorbed[4000:][made.labels[4000:] == i]
        assert 0.3 < expected.double().mean() < 0.5  # there is something to find
        assert torch.equal(one.full, expected)
        torch.testing.assert_close(one.fraction, expected.float())
        assert one.details()["full_absorption_rate"] == pytest.approx(expected.double().mean())


@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("split", 2)])
def test_no_absorption_and_split_features(kind, count):
    _, letters = measured(kind)
    for i, one in enumerate(letters):
        assert len(one.latents) == one.details()["num_split_features"] == count
        if kind == "split":
            assert set(one.latents) == {i, i + 3}
        assert not one.full.any()
        assert not one.fraction.any()
        assert one.details()["num_full_absorption"] == 0


def test_a_child_that_shares_the_word_absorbs_a_part():
    """Parent and child fire together: not full, and the fraction is the child's share."""
    W_dec = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    x, w = torch.tensor([[1.6, 0.8]]), torch.tensor([3.0, 0.0])
    fraction, full = absorbed(x, torch.tensor([[0.9, 1.0]]), W_dec, w, torch.tensor([0]))
    assert fraction.tolist() == [0.0]  # 0.6 of 1.6 is under 0.4
    fraction, full = absorbed(x, torch.tensor([[0.9, 1.5]]), W_dec, w, torch.tensor([0]))
    assert fraction.item() == pytest.approx(0.7 / 1.6)  # no more than the parent leaves
    assert full.tolist() == [False]


def test_absorbed_by_a_slow_loop():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 6, generator=generator)
    W_dec = torch.nn.functional.normalize(torch.randn(9, 6, generator=generator), dim=1)
    f = torch.randn(400, 9, generator=generator).relu()
    w = torch.randn(6, generator=generator)
    main = [2, 5]
    fraction, full = absorbed(x, f, W_dec, w, torch.tensor(main))
    unit = (w / w.norm()).numpy()
    cosine = [float(row @ unit) for row in W_dec.numpy()]
    for row in range(400):
        parts = [float(f[row, j]) * cosine[j] for j in range(9)]
        whole = float(x[row].numpy() @ unit)
        m = sum(parts[j] for j in main)
        others = [parts[j] for j in range(9) if j not in main and cosine[j] >= 0.1]
        a = sum(sorted([p for p in others if p > 0], reverse=True)[:3])
        if whole <= 0 or m >= whole or a / whole < 0.4:
            expected = 0.0
        elif m <= 0:
            expected = 1.0
        else:
            a = min(a, whole - m)
            expected = a / (a + m)
        assert fraction[row].item() == pytest.approx(expected, abs=1e-5)
        best = int(np.argmax(parts))
        off = all(float(f[row, j]) == 0 for j in main)
        assert bool(full[row]) == (
            off and whole > 0 and cosine[best] >= 0.025 and parts[best] / whole >= 0.4
        )
    assert full.any()
    assert ((fraction > 0) & (fraction < 1)).any()


def test_probes_and_scores_against_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2500, 5, generator=generator)
    label = (x[:, :3] + 0.7 * torch.randn(2500, 3, generator=generator)).argmax(1)
    y = (label[:, None] == torch.arange(3)).float()
    probes = linear.train(x, y, linear.ACTIVATIONS, 0)
    again = linear.train(x, y, linear.ACTIVATIONS, 0)
    assert torch.equal(probes.weight, again.weight)
    for i in range(3):
        theirs = LogisticRegression(C=1e4, class_weight="balanced").fit(x, y[:, i])
        agree = (probes(x)[:, i] > 0).numpy() == theirs.predict(x)
        assert agree.mean() > 0.97
        scores = sparse_scores(x[:, :2], y[:, i], x[:, :2])
        predicted = LogisticRegression(class_weight="balanced").fit(x[:, :2], y[:, i])
        assert ((scores > 0).numpy() == predicted.predict(x[:, :2])).all()
        ours = f1(y[:, i] > 0, scores > 0)
        assert ours == pytest.approx(f1_score(y[:, i], (scores > 0).float()))
    sparse = linear.train(x, y, linear.ACTIVATIONS._replace(weight_decay=0.0, l1=1.0), 0)
    assert sparse.weight.abs().sum() < probes.weight.abs().sum() / 5


def test_split_counts():
    assert num_split([0.9], 0.03) == 1
    assert num_split([0.0, 0.0], 0.03) == 1
    assert num_split([0.1, 0.2, 0.3], 0.03) == 3
    assert num_split([0.5, 0.53, 0.9], 0.03) == 1  # more than the jump, not the jump itself


def test_words_are_tokens_of_letters(lm):
    words = vocabulary_words(lm.tokenizer)
    assert len(words) == len(set(words)) > 200
    assert any(word[0] == " " for word in words)
    vocab = lm.tokenizer.get_vocab()
    for word in words:
        assert word.strip().isascii()
        assert word.strip().isalpha()
        (ids,) = tokenise(lm.tokenizer, [prompt(word, ["a", " hb"])])
        assert ids[-1] == vocab[word.replace(" ", "Ġ")]
    assert first_letter(" Word") == "w"


def test_prompts_never_hold_their_word():
    words = [f"{a}{b}" for a in "abcd" for b in "xyz"]
    made = prompts(words, 11, np.random.default_rng(0))
    for word, text in zip(words, made, strict=True):
        *lines, last = text.split("\n")[1:]
        assert last == word
        assert sorted(line.split(" ")[0] for line in lines) == sorted({*words} - {word})
        assert all(line.endswith(f"letter: {line[0].upper()}") for line in lines)
    assert len({text.split("\n")[1] for text in made}) > 3


def test_a_run_and_the_next_sae_without_the_lm(lm, monkeypatch):
    sae = planted(torch.eye(32)[:3], torch.zeros(3), noise=20)
    evaluation = AbsorptionEval(**SMALL, bootstrap=FEW)
    result = evaluation.run(context_of(sae, lm))
    assert result.tokens == {"words": 300, "test words": 60}
    assert result.metrics["probe_accuracy"].value > 0.6
    for word in ("absorption_fraction_score", "full_absorption_score", "num_split_features"):
        assert result.metrics[f"mean_{word}"].value is not None
    rate = result.metrics["mean_absorption_fraction_score"]
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    counted = result.details["letters_counted"]
    rates = [result.details["letters"][one]["mean_absorption_fraction"] for one in counted]
    assert rate.value == pytest.approx(np.mean(rates))
    spread = result.metrics["std_dev_absorption_fraction_score"].value
    assert spread == pytest.approx(np.std(rates, ddof=1))
    assert "a billion parameters" in result.details["caveat"]
    assert EvalResult.from_json(result.to_json()) == result

    monkeypatch.setattr(lm, "capture", None)
    assert evaluation.run(context_of(sae, lm)).metrics == result.metrics
    other = planted(torch.eye(32)[:2], torch.zeros(2), noise=20)
    assert evaluation.run(context_of(other, lm)).metrics != result.metrics


def test_words_whose_activation_does_not_count_are_left_out(lm, monkeypatch):
    """A tenth of the words have massive activations."""
    capture, measured = lm.capture, []

    def heavy(tokens, points):
        massive = 1 + 1e4 * (tokens % 10 == 0)
        return {p: x * massive[..., None] for p, x in capture(tokens, points).items()}

    def spy(W_dec, train, test, **settings):
        measured.extend([train, test])
        return measure(W_dec, train, test, **settings)

    monkeypatch.setattr(lm, "capture", heavy)
    monkeypatch.setattr("sae.evals.absorption.measure", spy)
    sae = planted(torch.eye(32)[:3], torch.zeros(3), noise=20)
    context = context_of(sae, lm, limit=1000.0)
    evaluation = AbsorptionEval(**SMALL, bootstrap=FEW)
    result = evaluation.run(context)
    words, num_train = evaluation._words(context)
    vocab = lm.tokenizer.get_vocab()
    counts = [vocab[word.replace(" ", "Ġ")] % 10 != 0 for word in words]
    parts = (words[:num_train], counts[:num_train]), (words[num_train:], counts[num_train:])
    for (x, f, labels), (part, kept) in zip(measured, parts, strict=True):
        expected = [first_letter(word) for word, one in zip(part, kept, strict=True) if one]
        assert [LETTERS[i] for i in labels.tolist()] == expected
        assert x.norm(dim=1).max() <= 1000
        torch.testing.assert_close(f, sae.encode(x), atol=1e-5, rtol=1e-4)
    assert 0 < result.details["words_left_out"] == len(words) - sum(counts)
    assert result.tokens == {"words": sum(counts), "test words": sum(counts[num_train:])}
    assert result.metrics["probe_accuracy"].value > 0.6


def test_too_few_letters_leave_the_scores_undefined(lm, caplog):
    sae = planted(torch.eye(32)[:3], torch.zeros(3), noise=20)
    result = AbsorptionEval(**{**SMALL, "min_letters": 20}, bootstrap=FEW).run(context_of(sae, lm))
    assert result.metrics["mean_full_absorption_score"].value is None
    assert result.metrics["mean_probe_f1"].value is not None
    assert "Absorption is undefined: " in caplog.text


def test_mistakes(lm, tiny_lm):
    sae = planted(torch.eye(32)[:3], torch.zeros(3), noise=20)
    elsewhere = place(sae, Point("mlp_out", 1), Rows(torch.zeros(1, 32), None))
    with pytest.raises(ConfigError, match=r"this SAE is at mlp_out.1. Choose an SAE with site=res"):
        AbsorptionEval().run(elsewhere)
    eye = torch.eye(32)
    config = SAEConfig("l1", "relu", 32, 32)
    skipping = SAE(eye, torch.zeros(32), eye, torch.zeros(32), config, W_skip=eye)
    with pytest.raises(ConfigError, match="eval=absorption takes latents out of the activation"):
        AbsorptionEval().run(context_of(skipping, lm))
    with pytest.raises(SourceError, match="has .* tokens that are words"):
        AbsorptionEval().run(context_of(sae, tiny_lm("gpt2")))
    with pytest.raises(ConfigError, match="max_k=24 must be at most 23"):
        AbsorptionEval(max_k=24).run(context_of(sae, lm))
    with pytest.raises(ConfigError, match="num_words=0 must be .* at least 1"):
        AbsorptionEval(num_words=0)
    with pytest.raises(ConfigError, match="f1_jump=1.0 must be .* below 1"):
        AbsorptionEval(f1_jump=1.0)
    made = planted_letters("none", 40, letters=1)
    with pytest.raises(SourceError, match="have 1 first letters in common"):
        measure(made.W_dec, made.part(slice(20)), made.part(slice(20, None)),
                max_k=1, f1_jump=0.03, seed=0)  # fmt: skip
