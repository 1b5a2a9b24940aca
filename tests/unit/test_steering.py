"""Pushes, their sizes, what is written under them, and the judge, against slow references."""

import math

import numpy as np
import pytest
import torch
from _features import POINT
from _steering import OPENINGS, Z_LATENT, about_z, at_home, home, placed, slow_kl  # noqa: F401

import sae
from sae.activations.counted import Counted, RowRule
from sae.errors import ConfigError, SourceError
from sae.features.output_effects import TOP_TOKENS, contrast, output_effects, strongest
from sae.features.steered_draws import Resamples
from sae.features.steering import Arm, Gauge, intervention, sizes_at
from sae.features.written import Pen, Written, distinct, harmonic, scored
from sae.interventions import added, intervene, set_to
from sae.language.generate import drawn
from sae.language.logit_lens import direct_logits
from sae.language.sites import output_module
from sae.metrics.bootstrap import Bootstrap, multinomial_weights
from sae.metrics.crossed import crossed_means, nested_draws
from sae.probing.judge import Judge
from sae.tasks.concept import read_concept, read_openings, snippets
from sae.tasks.labelled import LabelledTexts
from sae.tasks.task import ids_of, one_token
from sae.types import Point


def tokens_of(lm, *texts):
    return torch.tensor([ids_of(lm.tokenizer, text) for text in texts])


def pen_on(one, prompts=tuple(OPENINGS), **more):
    settings = {"draws": 1, "new_tokens": 6, "temperature": 0.0, "seed": 0, "batch_texts": 3}
    return Pen(one, prompts, **settings | more)


@pytest.mark.parametrize("edit", ["added", "clamped"])
def test_edits_of_a_latent_are_their_closed_forms_and_change_the_logits(placed, edit):  # noqa: F811
    lm, one, a = placed.lm, placed, 3.0
    tokens = tokens_of(lm, "abcdefgh")
    x = lm.capture(tokens, [POINT])[POINT]
    f, row = one.sae.encode(x)[..., Z_LATENT, None], one.sae.W_dec[Z_LATENT]
    step = a * row.expand_as(x) if edit == "added" else (a - f) * row
    made = added([Z_LATENT], a) if edit == "added" else set_to([Z_LATENT], a)
    step[:, 0] = 0  # the separator, at position 0
    with sae.intervene(lm, one.intervention(made)):
        found = lm.logits(tokens)
    expected = lm.logits(tokens, {POINT: lambda x: x + step})
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[:, 1:] - lm.logits(tokens)[:, 1:]).abs().max() > 0.05


def test_the_arm_of_a_feature_adds_its_decoder_row(placed):  # noqa: F811
    lm, tokens = placed.lm, tokens_of(placed.lm, "abcdefgh")
    arm = Arm("feature", 5 * placed.sae.W_dec[Z_LATENT])  # only the direction counts
    with intervene(lm, intervention(placed, arm.pushed(2.5))):
        pushed = lm.logits(tokens)
    with intervene(lm, placed.intervention(added([Z_LATENT], 2.5))):
        torch.testing.assert_close(pushed, lm.logits(tokens), atol=1e-5, rtol=1e-5)


def test_a_push_along_a_planted_feature_raises_its_letter_and_the_other_way_lowers_it(
    placed,  # noqa: F811
):
    lm, tokens = placed.lm, tokens_of(placed.lm, "abcdefgh")
    z, row = one_token(lm.tokenizer, "z"), placed.sae.W_dec[Z_LATENT]
    likely = []
    for arm in (Arm("wrong sign", -row), None, Arm("feature", row)):
        edits = [] if arm is None else [intervention(placed, arm.pushed(3.0))]
        with intervene(lm, *edits):
            likely.append(float(torch.softmax(lm.logits(tokens)[0, 1:], -1)[:, z].mean()))
    assert 2 * likely[0] < likely[1] < likely[2] / 2


def test_noise_has_one_length_and_is_new_at_every_position():
    x = torch.zeros(2, 5, 8)
    noise = Arm("noise", seed=3).pushed(torch.tensor([1.5, 4.0]))(x)
    torch.testing.assert_close(noise.norm(dim=-1), torch.tensor([[1.5], [4.0]]).expand(2, 5))
    flat = torch.nn.functional.normalize(noise.flatten(0, 1), dim=-1)
    assert (flat @ flat.T - torch.eye(10)).abs().max() < 0.99


def test_the_noise_of_a_text_does_not_depend_on_the_batch():
    x, texts = torch.zeros(3, 2, 8), [(0, 0), (1, 0), (1, 4)]
    replace = Arm("noise", seed=3).pushed(1.0, texts)
    first, then = replace(x), replace(x[:, :1])
    assert not torch.isclose(first[:, :1], then).any()
    for i, text in enumerate(texts):
        alone = Arm("noise", seed=3).pushed(1.0, [text])
        torch.testing.assert_close(alone(x[:1]), first[i : i + 1])
        torch.testing.assert_close(alone(x[:1, :1]), then[i : i + 1])


def test_every_prompt_has_its_own_random_direction():
    x, directions = torch.zeros(4, 2, 3), torch.tensor([[3.0, 0, 0], [0, 5.0, 0]])
    texts = [(0, 1), (1, 0), (0, 0), (1, 1)]
    found = Arm("random", directions).pushed(torch.tensor([1.0, 2.0, 3.0, 4.0]), texts)(x)
    expected = torch.tensor([[0.0, 1, 0], [2, 0, 0], [3, 0, 0], [0, 4, 0]])
    torch.testing.assert_close(found, expected[:, None].expand(4, 2, 3))


def test_rows_that_do_not_count_stay_in_pushes_and_in_text(placed, monkeypatch):  # noqa: F811
    """A limit that some rows pass and others do not; the separator never counts."""
    lm, tokens = placed.lm, tokens_of(placed.lm, "abcdefgh")
    x = lm.capture(tokens, [POINT])[POINT]
    limit = float(x.norm(dim=-1)[0, 1:].median())
    counted = Counted(RowRule(), (lm.separator_id,), {str(POINT): limit})
    monkeypatch.setattr(placed.source, "counted", counted)
    edit = intervention(placed, Arm("", placed.sae.W_dec[0]).pushed(9.0))
    seen = []
    with (
        intervene(lm, edit),
        lm.hooked({POINT: lambda x, _: seen.append(x.clone())}),
    ):
        lm.logits(tokens)
    moved = (seen[0] - x).norm(dim=-1)[0]
    counts = (x.norm(dim=-1)[0] <= limit) & (torch.arange(len(moved)) > 0)
    assert 0 < counts[1:].sum() < len(moved) - 1
    torch.testing.assert_close(moved, 9.0 * counts.float(), atol=1e-4, rtol=1e-4)


def test_kl_against_a_slow_loop(placed):  # noqa: F811
    lm = placed.lm
    texts = [tokens_of(lm, text)[0] for text in ("abcd", "badc", "abcdefg")]
    arm, direction = Arm("", placed.sae.W_dec[3]), placed.sae.W_dec[3]
    found = Gauge(placed, texts).kl(arm, [0.5, 4.0])
    for value, size in zip(found, (0.5, 4.0), strict=True):
        total, count = 0.0, 0
        for text in texts:
            step = size * direction.expand(1, len(text), -1).clone()
            step[:, 0] = 0
            clean = lm.logits(text[None])
            kl = slow_kl(clean, lm.logits(text[None], {POINT: lambda x, s=step: x + s}))
            total, count = total + float(kl[0, 1:].sum()), count + len(text) - 1
        assert value == pytest.approx(total / count, rel=1e-4)


def test_kl_with_a_direction_for_each_prompt(placed):  # noqa: F811
    """Texts of other lengths, so that batches are in another order than the prompts."""
    texts = [tokens_of(placed.lm, text)[0] for text in ("abcdefg", "abcd", "badcefg")]
    directions = placed.sae.W_dec[[3, 5, 9]]
    total, count = 0.0, 0
    for text, direction in zip(texts, directions, strict=True):
        kl = Gauge(placed, [text]).kl(Arm("", direction), [4.0])[0]
        total, count = total + kl * (len(text) - 1), count + len(text) - 1
    found = Gauge(placed, texts).kl(Arm("", directions), [4.0])[0]
    assert found == pytest.approx(total / count, rel=1e-4)


class Known(Gauge):
    """KL that is a known function of the size."""

    def __init__(self, function):
        self.function, self.passes = function, 0

    def kl(self, arm, sizes):
        self.passes += len(sizes)
        return [self.function(size) for size in sizes]


@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_sizes_reach_every_target(scale):
    gauge = Known(lambda size: 5 * (1 - math.exp(-((size / scale) ** 2))))
    targets = [0.1, 0.25, 0.5, 1.0, 2.0]
    found = sizes_at(gauge, Arm(""), targets, start=1.0)
    assert [one.target for one in found] == targets
    for one in found:
        assert one.reached
        assert one.kl == gauge.function(one.size)
        assert one.kl == pytest.approx(one.target, rel=0.05)
    assert gauge.passes < 60


def test_a_target_that_no_size_reaches_is_said():
    found = sizes_at(Known(lambda size: 0.3 * size / (1 + size)), Arm(""), [0.1, 2.0], start=1.0)
    assert [one.reached for one in found] == [True, False]
    assert found[1].kl < 0.3


def test_sizes_on_an_lm(placed):  # noqa: F811
    gauge = Gauge(placed, list(tokens_of(placed.lm, "abcdef", "badcfe")))
    for arm in (Arm("", placed.sae.W_dec[Z_LATENT]), Arm("", -placed.sae.W_dec[3]), Arm("noise")):
        for one in sizes_at(gauge, arm, [0.05, 0.2], start=1.0):
            assert one.reached
            assert gauge.kl(arm, [one.size]) == [one.kl]


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


def test_output_score_and_confidence_against_their_definitions(placed):  # noqa: F811
    lm, found = placed.lm, contrast(placed, about_z(), range(120), per_class=30, max_tokens=24)
    prompts = [ids_of(lm.tokenizer, text) for text in OPENINGS[:2]]
    effects = output_effects(placed, [3, Z_LATENT], found, prompts, 5.0)
    for effect in effects:
        row = placed.sae.W_dec[effect.latent]
        lens = direct_logits(lm, row[None], POINT)[0].topk(TOP_TOKENS).indices.tolist()
        scores, changes = [], []
        for ids in prompts:
            tokens, confidences = torch.tensor([ids]), []
            step = 5.0 * row.expand(1, len(ids), -1).clone()
            step[:, 0] = 0
            for replace in ({}, {POINT: lambda x, s=step: x + s}):
                p = torch.softmax(lm.logits(tokens, replace)[0, -1].double(), -1)
                confidences.append(-float(p.sort(descending=True).values[:TOP_TOKENS].log().mean()))
            order = p.argsort(descending=True).tolist()
            rank = min(order.index(token) for token in lens)
            scores.append(float(p[lens].max()) * (1 - rank / len(p)))
            changes.append(abs(confidences[1] - confidences[0]))
        assert effect.promoted == lens
        assert effect.output_score == pytest.approx(np.mean(scores), rel=1e-3)
        assert effect.confidence == pytest.approx(np.mean(changes), rel=1e-3)
    assert strongest(effects, "output", 1)[0].latent == Z_LATENT
    without_lens = [effect._replace(output_score=None) for effect in effects]
    assert len(strongest(without_lens, "confidence", 5)) == 2
    with pytest.raises(ConfigError, match="select=confidence"):
        strongest(without_lens, "output", 1)


def test_the_contrast_of_texts_against_a_slow_loop(placed):  # noqa: F811
    texts = about_z(4)
    found = contrast(placed, texts, range(8), per_class=3, max_tokens=9)
    means = {0: [], 1: []}
    for label, of_class in means.items():
        chosen = [texts.texts[i] for i in range(8) if texts.labels[i] == label][:3]
        for text in chosen:
            tokens = tokens_of(placed.lm, text)[:, :9]
            x = placed.lm.capture(tokens, [POINT])[POINT][0, 1:]
            of_class.append(torch.cat([x.mean(0), placed.sae.encode(x).mean(0)]))
    expected = torch.stack(means[1]).mean(0) - torch.stack(means[0]).mean(0)
    d = placed.sae.d_in
    torch.testing.assert_close(found.direction, expected[:d], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.latents, expected[d:], atol=1e-5, rtol=1e-4)


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


def test_crossed_means_against_a_slow_loop():
    values = np.random.default_rng(0).normal(size=(3, 4))
    found = crossed_means(values, Bootstrap(num_resamples=5, seed=2))
    rows, columns = (multinomial_weights(n, 5, seed).numpy() for n, seed in ((3, 2), (4, 3)))
    assert found[0] == pytest.approx(values.mean())
    for i in range(5):
        total = sum(rows[i, a] * columns[i, b] * values[a, b] for a in range(3) for b in range(4))
        assert found[i + 1] == pytest.approx(total / 12)


def test_nested_draws_hold_texts_of_drawn_prompts_alone():
    found = nested_draws(3, 4, 2000, seed=1)
    assert found[0].tolist() == np.ones((3, 4)).tolist()
    of_group = found[1:].sum(2) / 4  # how often each group was drawn
    assert set(np.unique(of_group)) <= {0, 1, 2, 3}
    assert of_group.sum(1).tolist() == [3] * 2000
    weights = found[1:] / 12
    values = np.random.default_rng(0).normal(size=(3, 4))
    # variance of a two-stage bootstrap mean: that of group means, and that inside groups
    between = values.mean(1).var() / 3
    inside = values.var(1).mean() / 12
    drawn = (weights * values).sum((1, 2))
    assert drawn.var() == pytest.approx(between + inside, rel=0.1)


def study_of(choose, report):
    return {"choose": {"score": choose}, "report": {"feature": {"score": report}}}


def test_resamples_choose_the_kl_anew_and_are_those_of_a_slow_loop():
    random = np.random.default_rng(0)
    choose, report = random.random((2, 3, 2, 4)), random.random((2, 3, 2, 5))
    studies = {i: study_of(choose[i], report[i]) for i in range(2)}
    drawn = Resamples(studies, Bootstrap(num_resamples=30, seed=7))
    found = drawn.means(report, drawn.at)
    features = np.vstack([[1, 1], multinomial_weights(2, 30, 7).numpy()])
    choosing, reporting = nested_draws(4, 2, 30, 8), nested_draws(5, 2, 30, 9)
    for r in range(31):
        total, chosen = 0.0, []
        for i in range(2):
            at = max(range(3), key=lambda t, i=i, r=r: (choosing[r].T * choose[i, t]).sum())
            total += features[r, i] * (reporting[r].T * report[i, at]).sum() / 10
            chosen.append(at)
        assert drawn.at[r].tolist() == chosen
        assert found[r] == pytest.approx(total / 2)
    assert found[0] == pytest.approx(np.mean([report[i, drawn.at[0, i]] for i in range(2)]))
    assert len({tuple(one) for one in drawn.at.tolist()}) > 1


def test_modules_whose_outputs_are_sites(tiny_lm):
    named = {
        ("gpt2", "resid"): "h.1", ("llama", "resid"): "layers.1",
        ("llama", "mlp_out"): "layers.1.mlp.down_proj", ("llama", "mlp_in"): None,
        ("granite", "attn_out"): None, ("granite", "resid"): "layers.1",
    }  # fmt: skip
    for (family, site), expected in named.items():
        model = tiny_lm(family).model
        assert output_module(model, Point(site, 1)) == expected
        if expected:
            assert expected in dict(model.base_model.named_modules())


def test_an_intervention_at_another_point_is_refused(placed, monkeypatch):  # noqa: F811
    monkeypatch.setattr(type(placed), "point", None)
    with pytest.raises(ConfigError, match="transcoders"):
        intervention(placed, lambda x: x)
