"""Reading and replacing activations, on tiny random LMs of every family."""

from types import SimpleNamespace

import pytest
import torch
from _families import EVERY
from torch import nn

PLAIN = ("gpt_neox", "gpt2", "llama")
"""Families without a norm, a factor or the stream itself behind the projections."""
LAYERS = 3


def points_of(lm):
    from sae.types import Point

    return [Point(site, layer) for site in lm.family.sites for layer in range(LAYERS)]


@pytest.fixture(params=EVERY)
def lm(request, tiny_lm):
    return tiny_lm(request.param)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 257, (3, 17), generator=generator)


def num_hooks(lm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def test_facts_about_the_lm(lm):
    assert (lm.d_model, lm.num_layers, lm.vocab_size, lm.max_ctx) == (32, LAYERS, 257, 512)
    assert lm.separator_id == 256
    assert lm.dtype == torch.float32
    assert lm.device.type == "cpu"
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_all_points_come_from_one_pass_with_their_widths(lm, tokens):
    passes = []
    handle = lm.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    try:
        captured = lm.capture(tokens, points_of(lm))
    finally:
        handle.remove()
    assert len(passes) == 1
    assert list(captured) == points_of(lm)
    for point, value in captured.items():
        assert value.shape == (3, 17, lm.width(point))
        assert lm.width(point) == (128 if point.site == "mlp" else 32)
        assert not value.requires_grad


def test_residual_captures_equal_hidden_states(lm, tokens):
    from sae.language.sites import family_of
    from sae.types import Point

    before_norm = []
    norm = lm.model.get_submodule(family_of(lm.model).final_norm)
    handle = norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    try:
        output = lm.model(tokens, use_cache=False, output_hidden_states=True)
    finally:
        handle.remove()
    expected = [*output.hidden_states[1:LAYERS], before_norm[0]]
    captured = lm.capture(tokens, [Point("resid", layer) for layer in range(LAYERS)])
    for value, hidden in zip(captured.values(), expected, strict=True):
        assert torch.equal(value, hidden)


@pytest.mark.parametrize("family", PLAIN)
def test_outputs_are_the_projections_of_the_inputs(tiny_lm, tokens, family):
    from sae.language.sites import module_at
    from sae.types import Point

    lm = tiny_lm(family)
    assert lm.model.config._attn_implementation == "sdpa"

    for read, written in (("mlp", "mlp_out"), ("mlp_in", "mlp_out"), ("attn_z", "attn_out")):
        points = [Point(read, 1), Point(written, 1)]
        before, after = lm.capture(tokens, points).values()
        torch.testing.assert_close(module_at(lm.model, points[0])(before), after)


def test_the_residual_stream_is_the_sum_of_what_was_added(lm, tokens):
    from sae.types import Point

    points = [Point(s, layer) for s in ("resid", "mlp_out", "attn_out") for layer in (0, 1)]
    found = lm.capture(tokens, points)
    total = found[Point("resid", 0)] + found[Point("mlp_out", 1)] + found[Point("attn_out", 1)]
    torch.testing.assert_close(found[Point("resid", 1)], total)


def test_capture_never_runs_the_layers_above(lm, tokens):
    from sae.language.sites import family_of
    from sae.types import Point

    def fail(*_):
        raise AssertionError("a module above the wanted point ran")

    family = family_of(lm.model)
    above = [lm.model.get_submodule(f"{family.blocks}.{i}") for i in (1, 2)]
    above += [lm.model.get_submodule(family.final_norm), lm.model.get_output_embeddings()]
    # In a parallel block (GPT-NeoX) attention runs before the MLP, as in the others.
    above.append(above[0].get_submodule(family.mlp_proj or "mlp"))
    handles = [module.register_forward_pre_hook(fail) for module in above]
    try:
        for points in ([Point("resid", 0)], [Point("resid", 0), Point("mlp_in", 0)]):
            assert list(lm.capture(tokens, points)) == points
        handles[0].remove()
        assert lm.capture(tokens, [Point("attn_out", 1), Point("resid", 0)])
        with pytest.raises(AssertionError, match="above"):
            lm.capture(tokens, [Point("mlp_out", 1)])
    finally:
        for handle in handles:
            handle.remove()


def test_the_lm_is_unharmed_by_an_early_stop(lm, tokens):
    from sae.types import Point

    before = lm.logits(tokens)
    lm.capture(tokens, [Point("resid", 0)])
    assert torch.equal(lm.logits(tokens), before)
    assert torch.equal(lm.model(tokens, use_cache=False).logits, before)


def test_no_points_give_nothing_and_repeated_points_one(lm, tokens):
    from sae.types import Point

    assert lm.capture(tokens, []) == {}
    assert len(lm.capture(tokens, [Point("resid", 0)] * 2)) == 1


def test_splicing_the_captured_value_back_changes_nothing(lm, tokens):
    clean = lm.logits(tokens)
    captured = lm.capture(tokens, points_of(lm))
    for point in points_of(lm):
        spliced = lm.logits(tokens, {point: lambda _, p=point: captured[p].clone()})
        torch.testing.assert_close(spliced, clean)
    everywhere = {point: lambda _, p=point: captured[p].clone() for point in points_of(lm)}
    torch.testing.assert_close(lm.logits(tokens, everywhere), clean)


def test_a_replacement_gets_the_activation_and_takes_effect(lm, tokens):
    clean = lm.logits(tokens)
    captured = lm.capture(tokens, points_of(lm))
    for point in points_of(lm):
        seen = []

        def zero(value, seen=seen):
            seen.append(value)
            return torch.zeros_like(value)

        changed = lm.logits(tokens, {point: zero})
        assert torch.equal(seen[0], captured[point])
        assert (changed - clean).abs().max() > 1e-3, point


def test_a_lower_replacement_reaches_a_higher_one(lm, tokens):
    from sae.types import Point

    seen = []
    low, high = Point("resid", 0), Point("resid", 1)
    lm.logits(tokens, {high: lambda v: seen.append(v) or v, low: torch.zeros_like})
    assert not torch.equal(seen[0], lm.capture(tokens, [high])[high])


def test_a_replacement_may_have_another_dtype(lm, tokens):
    from sae.types import Point

    out = lm.logits(tokens, {Point("mlp_out", 1): lambda v: v.double()})
    torch.testing.assert_close(out, lm.logits(tokens))


@pytest.mark.parametrize(
    ("wrong", "got"),
    [(lambda v: v[:, 1:], r"\[3, 16, 32\]"), (lambda v: None, "NoneType")],
)
def test_a_replacement_of_another_shape_is_an_error(lm, tokens, wrong, got):
    from sae.errors import SiteError
    from sae.types import Point

    with pytest.raises(SiteError, match=rf"resid.1 returned {got}.*\[3, 17, 32\]"):
        lm.logits(tokens, {Point("resid", 1): wrong})


def test_hooks_are_removed_even_after_errors(lm, tokens):
    from sae.errors import SiteError, SourceError
    from sae.types import Point

    def explode(value):
        raise RuntimeError("boom")

    before = num_hooks(lm)
    lm.capture(tokens, points_of(lm))
    lm.logits(tokens, {Point("resid", 0): torch.zeros_like})
    for replace in (explode, lambda v: v[:1]):
        with pytest.raises((RuntimeError, SiteError)):
            lm.logits(tokens, {Point("resid", 0): replace, Point("mlp_out", 2): replace})
    with pytest.raises(SiteError):
        lm.logits(tokens, {Point("resid", 0): explode, Point("resid", 9): explode})
    with pytest.raises(SourceError):
        lm.capture(tokens + 1000, [Point("resid", 0)])
    assert num_hooks(lm) == before


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tokens_of_both_integer_dtypes_are_taken(lm, tokens, dtype):
    from sae.types import Point

    point = Point("resid", 1)
    value = lm.capture(tokens.to(dtype), [point])[point]
    assert torch.equal(value, lm.capture(tokens, [point])[point])


def test_a_layer_out_of_range_names_the_range(lm, tokens):
    from sae.errors import SiteError
    from sae.types import Point

    for layer in (-1, LAYERS):
        with pytest.raises(SiteError, match=rf"layer={layer} does not exist.*0 to 2"):
            lm.capture(tokens, [Point("resid", layer)])
        with pytest.raises(SiteError, match="3 layers"):
            lm.width(Point("mlp_in", layer))


def test_an_unknown_site_names_the_known_ones(lm):
    from sae.errors import SiteError
    from sae.types import Point

    with pytest.raises(SiteError, match=rf"site=residual.*{', '.join(lm.family.sites)}"):
        lm.check(Point("residual", 0))


def test_contexts_longer_than_the_lm_allows_are_an_error(lm):
    from sae.errors import ConfigError

    with pytest.raises(ConfigError, match=r"513 tokens.*at most 512"):
        lm.logits(torch.zeros(1, 513, dtype=torch.int32))


def test_an_unknown_family_says_how_to_add_one(tiny_lm):
    from transformers import BertConfig, BertForMaskedLM

    from sae.errors import SiteError
    from sae.language import LanguageModel

    bert = BertForMaskedLM(BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8,
    ))  # fmt: skip
    tokenizer = tiny_lm("gpt2").tokenizer
    with pytest.raises(SiteError, match=r"'bert'.*gpt_neox, gpt2, llama.*Family entry.*sites\.py"):
        LanguageModel(bert, tokenizer)
    with pytest.raises(SiteError, match="'Linear'"):
        LanguageModel(nn.Linear(2, 2), tokenizer)


def test_blocks_may_return_tuples(tiny_lm):
    from sae.language import LanguageModel
    from sae.types import Point

    class Block(nn.Module):
        """A block as some versions of transformers have them."""

        def forward(self, x):
            return x + 1, "attention"

    class Old(nn.Module):
        config = SimpleNamespace(
            model_type="llama", hidden_size=2, vocab_size=9, max_position_embeddings=8
        )

        def __init__(self):
            super().__init__()
            self.model = nn.Module()
            self.model.layers = nn.ModuleList([Block(), Block()])
            self.embed = nn.Embedding(9, 2)

        def forward(self, tokens, use_cache):
            x = self.embed(tokens)
            for block in self.model.layers:
                x, attention = block(x)
                assert attention == "attention"
            return SimpleNamespace(logits=x)

    lm = LanguageModel(Old(), tiny_lm("gpt2").tokenizer)
    tokens = torch.arange(6).reshape(2, 3)
    first, second = Point("resid", 0), Point("resid", 1)
    captured = lm.capture(tokens, [second, first])
    assert list(captured) == [second, first]
    assert torch.equal(captured[first], lm.model.embed(tokens) + 1)
    assert torch.equal(lm.logits(tokens, {first: torch.zeros_like}), torch.ones(2, 3, 2))


def test_an_lm_object_of_the_user_is_known_by_its_weights(tiny_source):
    from sae.language import GivenLM, LanguageModel

    def own(seed, dtype="float32"):
        lm = tiny_source("gpt2", seed=seed, dtype=dtype).load()
        return GivenLM(LanguageModel(lm.model, lm.tokenizer, name="mine"))

    assert own(0).identity() == own(0).identity()
    assert own(0).identity() != own(1).identity()
    assert own(0).identity() != own(0, "bfloat16").identity()
    source = own(0)
    assert source.load() is source.lm
    assert source.load_tokenizer() is source.lm.tokenizer
    assert source.to_config()["name"] == "mine"


def test_a_half_precision_lm_captures_in_its_dtype(tiny_source, tokens):
    from sae.types import Point

    lm = tiny_source("llama", dtype="bfloat16").load()
    point = Point("resid", 1)
    assert lm.dtype == torch.bfloat16
    assert lm.capture(tokens, [point])[point].dtype == torch.bfloat16
    assert lm.logits(tokens, {point: lambda v: v.float()}).dtype == torch.bfloat16


def test_the_tokens_of_a_text_have_a_separator_in_front(lm):
    tokens = lm.tokens("Paris, café")
    assert tokens.tolist() == [[lm.separator_id, *lm.tokenizer("Paris, café")["input_ids"]]]
