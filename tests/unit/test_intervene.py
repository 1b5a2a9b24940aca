"""Edits that stay in place: in passes, in captures, in generation with and without a KV cache."""

import math

import pytest
import torch
from _families import EVERY
from _features import POINT as RESID
from _features import make_sae, placed_on, source

import sae
from sae.activations.counted import Counted, RowRule
from sae.errors import ConfigError, SiteError
from sae.interventions import Intervention, added, clamped, edited, intervene, scaled, set_to
from sae.language.generate import generate
from sae.types import Point

__all__ = ["source"]  # a fixture
POINT = Point("resid", 1)


@pytest.fixture(params=EVERY)
def lm(request, tiny_lm):
    return tiny_lm(request.param)


@pytest.fixture
def tokens():
    return torch.randint(1, 250, (3, 9), generator=torch.Generator().manual_seed(0))


def step(lm):
    """A step long enough to change what the LM writes."""
    direction = torch.randn(lm.width(POINT), generator=torch.Generator().manual_seed(3))
    return lambda x: x + 40 * direction


def by_hand(lm, tokens, new_tokens, replace):
    """Generation without hooks that stay and without a cache: whole passes, one after another."""
    for _ in range(new_tokens):
        logits = lm.logits(tokens, replace)
        tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_that_of_whole_passes(lm, tokens, use_cache):
    clean = generate(lm, tokens, new_tokens=5, use_cache=use_cache)
    assert torch.equal(clean, by_hand(lm, tokens, 5, None))
    with intervene(lm, Intervention(POINT, step(lm))):
        written = generate(lm, tokens, new_tokens=5, use_cache=use_cache)

    def all_but_the_first(x):
        return torch.cat([x[:, :1], step(lm)(x)[:, 1:]], dim=1)

    assert torch.equal(written, by_hand(lm, tokens, 5, {POINT: all_but_the_first}))
    assert not torch.equal(written, clean)
    assert torch.equal(generate(lm, tokens, new_tokens=5, use_cache=use_cache), clean)  # gone again


@pytest.mark.parametrize("use_cache", [True, False])
def test_positions_of_the_prompt_are_chosen_and_written_tokens_are_edited(lm, tokens, use_cache):
    chosen = torch.zeros(3, 9, dtype=torch.bool)
    chosen[1, 4:6] = True
    with intervene(lm, Intervention(POINT, step(lm), positions=chosen)):
        written = generate(lm, tokens, new_tokens=4, use_cache=use_cache)

    def there(x):
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
        mask[:, :9] = chosen
        return torch.where(mask[..., None], step(lm)(x), x)

    assert torch.equal(written, by_hand(lm, tokens, 4, {POINT: there}))


def test_rows_that_do_not_count_stay(lm, tokens):
    clean = lm.capture(tokens, [POINT])[POINT]
    norms = clean.norm(dim=-1)
    limit = float(norms[:, 1:].median())
    counted = Counted(RowRule(), (int(tokens[0, 3]),), {str(POINT): limit})
    with intervene(lm, Intervention(POINT, step(lm), counted)):
        seen = lm.capture(tokens, [POINT])[POINT]
    stays = (norms > limit) | (tokens == tokens[0, 3])
    stays[:, 0] = True
    assert 0 < stays[:, 1:].sum() < stays[:, 1:].numel()
    assert torch.equal(seen[stays], clean[stays])
    torch.testing.assert_close(seen[~stays], step(lm)(clean)[~stays])
    with intervene(lm, Intervention(POINT, step(lm), keep_first=True)):
        assert not torch.equal(lm.capture(tokens, [POINT])[POINT][:, 0], clean[:, 0])


def test_several_sites_and_several_edits_of_one(lm, tokens):
    low, high = Point("attn_out", 0), Point("resid", 2)
    edits = [Intervention(high, torch.neg), Intervention(low, lambda x: 2 * x),
             Intervention(high, lambda x: x + 1)]  # fmt: skip

    def but_first(function):
        return lambda x: torch.cat([x[:, :1], function(x)[:, 1:]], dim=1)

    replace = {low: but_first(lambda x: 2 * x), high: but_first(lambda x: 1 - x)}
    with intervene(lm, *edits):
        found = lm.logits(tokens)
    torch.testing.assert_close(found, lm.logits(tokens, replace))


@pytest.mark.parametrize("layer", [0, 1])
def test_passes_that_share_their_lower_blocks_are_edited_once(lm, tokens, layer):
    inner, vector = Point("resid", layer), torch.randn(lm.width(POINT))
    conditions = [{}, {inner: lambda x: 0.5 * x}, {inner: lambda x: x + vector}]
    with intervene(lm, Intervention(inner, lambda x: 2 * x + vector.flip(0))):
        together = [logits.clone() for logits in lm.logits_under(tokens, conditions)]
        alone = [lm.logits(tokens, replace) for replace in conditions]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_an_error_inside_leaves_no_edit_behind(lm, tokens):
    clean = lm.logits(tokens)
    with pytest.raises(ZeroDivisionError), intervene(lm, Intervention(POINT, step(lm))):
        raise ZeroDivisionError
    assert torch.equal(lm.logits(tokens), clean)
    with pytest.raises(SiteError), intervene(lm, Intervention(Point("resid", 99), step(lm))):
        pass
    assert torch.equal(lm.logits(tokens), clean)


def test_an_edit_of_an_sae_is_that_of_its_code(source):
    one = placed_on(source, make_sae(source))
    lm, tokens = one.lm, torch.as_tensor(source.store("test").tokens[:2]).long()
    clean, x = lm.logits(tokens), lm.capture(tokens, [RESID])[RESID]
    counts = source.counted.mask([x], tokens)
    counts[:, 0] = False
    with sae.intervene(lm, one.intervention(set_to([5], 9.0))):
        found = lm.logits(tokens)

    def slow(x):
        f = one.sae.encode(x)[..., 5:6]
        return torch.where(counts[..., None], x + (9 - f) * one.sae.W_dec[5], x)

    torch.testing.assert_close(found, lm.logits(tokens, {RESID: slow}))
    assert (found - clean).abs().max() > 0.01
    with sae.intervene(lm, one.intervention(scaled([5], 1.0))):
        torch.testing.assert_close(lm.logits(tokens), clean)
    with sae.intervene(lm, one.intervention(scaled([5], 1.0), error="dropped")):
        assert (lm.logits(tokens) - clean).abs().max() > 0.01


def test_parts_of_the_lm_by_themselves_are_refused(tiny_lm, tokens):
    lm = tiny_lm("gpt2")
    with intervene(lm, Intervention(POINT, step(lm))):
        edited_logits = lm.model(tokens).logits
        assert torch.equal(edited_logits, lm.logits(tokens))
        with pytest.raises(ConfigError, match="by itself"):
            lm.model.transformer(tokens)
        with pytest.raises(ConfigError, match="inputs_embeds"):
            lm.model(inputs_embeds=torch.zeros(1, 2, lm.d_model))


def test_another_lm_is_refused(source, tiny_lm):
    one, other = placed_on(source, make_sae(source)), tiny_lm("llama")
    with (
        pytest.raises(ConfigError, match="another LM"),
        intervene(other, one.intervention(set_to([1], 1.0))),
    ):
        pass


def test_latents_that_the_sae_lacks_are_refused(source):
    one = placed_on(source, make_sae(source, d_sae=48))
    for latents in ([48], [-1], torch.ones(47, dtype=torch.bool)):
        with pytest.raises(ConfigError, match="0 to 47"):
            edited(one.sae, set_to(latents, 0.0))(torch.zeros(1, 2, one.sae.d_in))


def test_codes_are_added_to_and_clamped():
    f = torch.tensor([[[0.5, 2.0, 3.0]]])
    assert added([0, 2], torch.tensor([1.0, -1.0]))(f).tolist() == [[[1.5, 2.0, 2.0]]]
    assert clamped([1, 2], high=2.5)(f).tolist() == [[[0.5, 2.0, 2.5]]]
    assert clamped([0, 1], low=1.0, high=1.5)(f).tolist() == [[[1.0, 1.5, 3.0]]]


@pytest.mark.parametrize("bounds", [{}, {"low": 2.0, "high": 1.0}])
def test_bounds_that_bound_nothing_are_refused(bounds):
    with pytest.raises(ConfigError, match="are no bounds. Give one, or low <= high"):
        clamped([0], **bounds)


def test_latents_with_a_fraction_are_refused():
    """They were cut to whole numbers: 1.7 edited latent 1."""
    with pytest.raises(ConfigError, match="given as torch.float32. Give integers from 0 to 2"):
        set_to(torch.tensor([1.7]), 0.0)(torch.zeros(1, 2, 3))
    assert set_to([], 5.0)(torch.zeros(1, 2, 3)).sum() == 0


def test_texts_are_continued(tiny_lm, tokens):
    lm = tiny_lm("llama")
    texts = ["abc", "ab", "xyz"]
    found = lm.generate(texts, new_tokens=4)
    assert [lm.generate(text, new_tokens=4)[0] for text in texts] == found
    assert lm.generate("abc", new_tokens=6, temperature=1.0, seed=1) == lm.generate(
        "abc", new_tokens=6, temperature=1.0, seed=1
    )
    drawn = {lm.generate("abc", new_tokens=6, temperature=1.0, seed=s)[0] for s in range(4)}
    assert len(drawn) > 1
    with pytest.raises(ConfigError, match="allows"):
        generate(lm, tokens, new_tokens=lm.max_ctx)
    with pytest.raises(ConfigError, match="temperature"):
        generate(lm, tokens, new_tokens=1, temperature=-math.pi)
