"""Pushes and their sizes, and effects on predictions, against slow references."""

import math

import numpy as np
import pytest
import torch
from _features import CTX, POINT
from _steering import OPENINGS, Z_LATENT, about_z, at_home, home, placed, slow_kl, tokens_of  # noqa: F401

import sae
from sae.activations.counted import Counted, RowRule
from sae.errors import ConfigError
from sae.features.output_effects import TOP_TOKENS, contrast, output_effects, strongest
from sae.features.steered import Neutral, costs
from sae.features.steering import Arm, Gauge, intervention, sizes_at
from sae.interventions import added, intervene, set_to
from sae.language.logit_lens import direct_logits
from sae.language.sites import output_module
from sae.tasks.task import ids_of, one_token
from sae.types import Point


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


def test_targets_are_reached_where_the_kl_falls_and_rises_again():
    """Up to 1.2 at size 3, down to 0.3 at 6, up again, and without end from 9 on."""
    bumpy = Known(lambda size: 0.3 + 0.9 * math.sin(math.pi * size / 6) ** 2 if size < 9 else size)
    for start in (0.5, 8.0, 100.0):
        for one in sizes_at(bumpy, Arm(""), [0.4, 1.0, 20.0], start=start):
            assert one.reached
            assert one.kl == bumpy.function(one.size)


@pytest.mark.parametrize("start", [0.01, 8.0])
def test_a_push_under_which_numbers_overflow_is_too_large(start):
    gauge = Known(lambda size: math.nan if size > 1 else 2 * size**2)
    *found, missed = sizes_at(gauge, Arm(""), [0.1, 1.0, 30.0], start=start)
    assert [one.kl for one in found] == pytest.approx([0.1, 1.0], rel=0.05)
    assert not missed.reached
    assert missed.kl == gauge.function(missed.size)


def test_sizes_on_an_lm(placed):  # noqa: F811
    gauge = Gauge(placed, list(tokens_of(placed.lm, "abcdef", "badcfe")))
    for arm in (Arm("", placed.sae.W_dec[Z_LATENT]), Arm("", -placed.sae.W_dec[3]), Arm("noise")):
        for one in sizes_at(gauge, arm, [0.05, 0.2], start=1.0):
            assert one.reached
            assert gauge.kl(arm, [one.size]) == [one.kl]


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


def test_the_cost_of_a_push_against_a_slow_loop_at_any_batch(placed):  # noqa: F811
    """Contexts take the directions of prompts in turn, whatever is read at once."""
    lm, rows, store = placed.lm, placed.sae.W_dec[:3], placed.source.store("test")
    pushes = [(Arm("random", rows), 4.0), (Arm("noise", seed=1), 4.0)]
    found = [costs(placed, pushes, Neutral("test", 8 * CTX, n), lambda _: None) for n in (1, 3, 8)]
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert same["predictions"] == one["predictions"]
            np.testing.assert_allclose(same["kl"], one["kl"], rtol=1e-3, atol=1e-5)
    total, chosen = 0.0, np.arange(8) * len(store.tokens) // 8
    for i, (tokens, document) in enumerate(
        zip(store.tokens[chosen], store.document[chosen], strict=True)
    ):
        context = torch.from_numpy(tokens).long()[None]
        x = lm.capture(context, [POINT])[POINT]
        edited = placed.counted.mask([x], context)
        edited[:, 0] = False
        step = 4.0 * rows[i % 3] * edited[..., None]
        kl = slow_kl(lm.logits(context), lm.logits(context, {POINT: lambda x, s=step: x + s}))
        within = torch.from_numpy(document[1:] == document[:-1])
        total += float(kl[0, :-1][within & edited[0, :-1]].sum())
    assert sum(found[0][0]["kl"]) == pytest.approx(total, rel=1e-3)


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
    with pytest.raises(ConfigError, match="Transcoders"):
        intervention(placed, lambda x: x)
