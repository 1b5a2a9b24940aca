"""`tpp` and `scr` with planted dictionaries, and their ablation against encoding again."""

from dataclasses import replace

import pytest
import torch
from _labelled import context_of, planted, words

from sae.activations.labelled import TextActivations
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError, SourceError
from sae.evals import EVALS, Bootstrap, EvalResult, scr, tpp
from sae.evals.scr import SCREval
from sae.evals.tpp import TPPEval
from sae.interventions import without
from sae.probing.codes import Pooled, pool
from sae.probing.linear import TEXT_MEANS, train
from sae.probing.logistic import balanced
from sae.probing.ranking import effects, strongest
from sae.tasks.biographies import PROFESSIONS, biographies

pytestmark = pytest.mark.slow

FEW = Bootstrap(num_resamples=50)


def axes_sae(count: int, d_in: int = 8, threshold: float = 0.0) -> SAE:
    """Latent j reads axis j; behind them latents of other axes."""
    return planted(torch.eye(d_in)[:count], torch.full((count,), threshold), noise=5)


def tokens_of(labels, num_tokens=3, size=8.0, d_in=8, seed=0):
    """Rows of noise, each with its text's class as an axis."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.randn(len(labels) * num_tokens, d_in, generator=generator)
    label = torch.as_tensor(labels).repeat_interleave(num_tokens)
    x[torch.arange(len(x)), label] += size * (label < 3)  # the fourth class is that of none
    return TextActivations(x, torch.full((len(labels),), num_tokens))


def test_ablation_of_means_equals_encoding_again():
    torch.manual_seed(0)
    sae = planted(torch.eye(8)[:2], torch.zeros(2), noise=20)
    lengths = torch.tensor([3, 1, 4])
    x = torch.randn(8, 8)
    pooled = pool(sae, TextActivations(x, lengths), batch_rows=3)
    chosen = torch.rand(22) < 0.4
    slow = []
    for part in x.split(lengths.tolist()):  # SAEBench's way: error kept, latents zeroed, mean last
        f = sae.encode(part)
        error = part - sae.decode(f)
        f[:, chosen] = 0
        slow.append((sae.decode(f) + error).mean(0))
    torch.testing.assert_close(
        without(*pooled, chosen, sae.W_dec), torch.stack(slow), atol=1e-5, rtol=1e-4
    )


def test_effects_by_a_slow_loop():
    torch.manual_seed(1)
    f, y, W_dec = torch.rand(20, 5), torch.arange(20) % 2, torch.randn(5, 3)
    probe = train(torch.randn(20, 3), y, TEXT_MEANS, seed=0)
    for only_more in (True, False):
        slow = []
        for j in range(5):
            difference = float(f[1::2, j].mean() - f[::2, j].mean())
            difference = max(0.0, difference) if only_more else difference
            slow.append(difference * sum(float(a * b) for a, b in
                                         zip(probe.weight, W_dec[j], strict=True)))  # fmt: skip
        assert effects(f, y, probe, W_dec, only_more).tolist() == pytest.approx(slow, abs=1e-6)
    assert strongest(torch.tensor([0.0, 1.0, 0.0]), 3).tolist() == [False, True, False]


def test_balanced_draw():
    labels = torch.tensor([0] * 10 + [1] * 10 + [2] * 10)
    rows, y = balanced(labels, 1, 3, torch.Generator().manual_seed(0))
    assert rows[y == 1].tolist() == list(range(10, 20))
    assert len(rows) == 20
    assert (labels[rows[y == 0]] != 1).all()
    assert len(set(rows.tolist())) == 20


def measured_tpp(sae, num_classes=4, per_class=520):
    labels = torch.arange(num_classes).repeat(per_class)
    pooled = pool(sae, tokens_of(labels))
    return tpp.measure(
        pooled, labels, sae.W_dec, num_classes, num_train=460, thresholds=[1], seed=0, bootstrap=FEW
    )


def test_tpp_of_a_perfect_dictionary():
    """A class without its only latent looks like the class of none; no other probe minds."""
    clean, ablated = measured_tpp(axes_sae(3))
    assert all(accuracy[0] > 0.9 for accuracy in clean.values())
    found = tpp.scores(clean, ablated)
    for i in range(3):
        assert found[i]["tpp_threshold_1_intended_diff_only"][0] > 0.3  # of 0.5 at most
        # a third of what the probe of none calls false looks true to it now: 1/18 of the mean
        assert found[i]["tpp_threshold_1_unintended_diff_only"][0] < 0.1
        assert ablated[i][1][3][0] == pytest.approx(5 / 6, abs=0.02)


def test_tpp_of_a_dictionary_that_knows_nothing():
    clean, ablated = measured_tpp(planted(torch.eye(8)[5:6], torch.tensor([1.0]), noise=0))
    for one in tpp.scores(clean, ablated).values():
        assert one["tpp_threshold_1_total_metric"][0] == pytest.approx(0, abs=0.02)


def quadrants(per_quadrant: int = 300):
    gender = torch.tensor([0, 0, 1, 1]).repeat(per_quadrant)
    profession = torch.tensor([0, 1, 0, 1]).repeat(per_quadrant)
    x = 0.1 * torch.randn(len(gender), 8, generator=torch.Generator().manual_seed(2))
    x[torch.arange(len(x)), gender] += 6.0  # axes 0 and 1
    x[torch.arange(len(x)), 2 + profession] += 3.0  # axes 2 and 3, fainter
    activations = TextActivations(x, torch.ones(len(x), dtype=torch.long))
    train = torch.arange(len(x)) < 2 * per_quadrant
    return activations, {"gender": gender, "profession": profession}, train


def test_scr_of_a_perfect_dictionary():
    """Without the two latents of gender the biased probe reads the profession, as far as it can."""
    activations, labels, train = quadrants()
    sae = axes_sae(4)
    clean, scored = scr.measure(
        pool(sae, activations), labels, train, sae.W_dec, thresholds=[2], seed=0, bootstrap=FEW
    )
    assert clean["profession"][0] == 1
    assert clean["biased_profession"][0] < 0.9  # gender is the louder cue
    assert scored["scr_dir1_threshold_2"][0] > 0.7
    assert scored["scr_metric_threshold_2"][0] == scored["scr_dir1_threshold_2"][0]


def test_scr_of_a_dictionary_that_knows_nothing():
    activations, labels, train = quadrants()
    sae = planted(torch.eye(8)[6:7], torch.tensor([1.0]), noise=0)
    _, scored = scr.measure(
        pool(sae, activations), labels, train, sae.W_dec, thresholds=[1], seed=0, bootstrap=FEW
    )
    assert scored["scr_dir1_threshold_1"][0] == pytest.approx(0, abs=0.02)


def test_intervals_of_scr_are_over_names():
    """Four texts of one name say no more than one of them."""
    activations, labels, train = quadrants()
    x = torch.cat([activations.x[train], activations.x[~train].repeat_interleave(4, 0)])
    many = {name: torch.cat([one[train], one[~train].repeat_interleave(4)])
            for name, one in labels.items()}  # fmt: skip
    names = [f"train {i}" for i in range(int(train.sum()))]
    names += [f"test {i // 4:04}" for i in range(4 * int((~train).sum()))]
    sae = axes_sae(4)

    def spread(x: torch.Tensor, labels: dict, unit: list[str] | None) -> float:
        rows = TextActivations(x, torch.ones(len(x), dtype=torch.long))
        clean, _ = scr.measure(
            pool(sae, rows), labels, torch.arange(len(x)) < int(train.sum()), sae.W_dec,
            thresholds=[2], seed=0, bootstrap=FEW, unit=unit,
        )  # fmt: skip
        return clean["biased_profession"].std()

    once = spread(activations.x, labels, None)
    assert spread(x, many, names) == pytest.approx(once)
    assert spread(x, many, None) < 0.7 * once


def test_run_of_tpp(tiny_lm, tmp_path):
    lm, texts, file = tiny_lm("gpt2"), words(30, ("a", "b", "c")), tmp_path / "mine.csv"
    rows = zip(texts.texts, texts.labels, strict=True)
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    sae = planted(torch.eye(32)[:3], torch.zeros(3))
    settings = {"csv": str(file), "num_train": 20, "thresholds": (2, 500), "bootstrap": FEW}
    result = TPPEval(num_test=10, **settings).run(context_of(sae, lm))
    assert set(result.metrics) == {
        f"tpp_threshold_2_{word}" for word in
        ("total_metric", "intended_diff_only", "unintended_diff_only")
    }  # fmt: skip
    assert EvalResult.from_json(result.to_json()) == result
    with pytest.raises(SourceError, match="0 has 30 texts; num_train \\+ num_test are 31"):
        TPPEval(num_test=11, **settings).run(context_of(sae, lm))


def test_classes_are_the_true_texts_of_binary_sets(monkeypatch):
    monkeypatch.setattr(
        tpp,
        "probe_sets",
        lambda names: [replace(words(5, seed=i), name=name) for i, name in enumerate(names)],
    )
    found = TPPEval(sets=("a", "b"), num_train=1, num_test=1)._texts()
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    assert all(text[-1] == "y" for text in found.texts)


def test_run_of_scr(tiny_lm):
    sae = planted(torch.eye(32)[:3], torch.zeros(3), noise=3)
    evaluation = SCREval(pairs=("professor/nurse",), thresholds=(2, 500), bootstrap=FEW)
    result = evaluation.run(context_of(sae, tiny_lm("gpt2")))
    assert set(result.metrics) == {f"scr_{word}_threshold_2" for word in ("dir1", "dir2", "metric")}
    assert result.tokens == {"pairs": 1, "test texts": 288}
    assert EvalResult.from_json(result.to_json()) == result


def test_biographies_hold_names_and_sentences_back():
    made = biographies(("surgeon", "teacher"))
    parts = {True: set(), False: set()}
    for text, is_train in zip(made.texts, made.train, strict=True):
        sentence = text.split(". ", 1)[1]
        parts[is_train] |= {sentence}
        assert not any(word in text.lower() for word in PROFESSIONS)
    assert not parts[True] & parts[False]
    for is_train in (True, False):
        combinations = [
            (p, g) for p, g, t in zip(made.profession, made.gender, made.train, strict=True)
            if t == is_train
        ]  # fmt: skip
        assert len({combinations.count(pair) for pair in set(combinations)}) == 1
        assert len(set(combinations)) == 4


def test_mistakes(tiny_lm):
    with pytest.raises(ConfigError, match="must name at least two sets"):
        TPPEval(sets=("a",))
    with pytest.raises(ConfigError, match="pairs of two different of professor"):
        SCREval(pairs=("professor/king",))
    with pytest.raises(ConfigError, match="thresholds=0 must be .* at least 1"):
        SCREval(thresholds=(0,))
    eye = torch.eye(32)
    config = SAEConfig("l1", "relu", 32, 32)
    skipping = SAE(eye, torch.zeros(32), eye, torch.zeros(32), config, W_skip=eye)
    for word in ("tpp", "scr"):
        with pytest.raises(ConfigError, match=f"eval={word} takes latents out of the activation"):
            EVALS[word]().run(context_of(skipping, tiny_lm("gpt2")))


def test_pooled_of_some():
    pooled = Pooled(torch.arange(3)[:, None].float(), torch.zeros(3, 2))
    assert pooled.of(torch.tensor([2])).x.tolist() == [[2.0]]
