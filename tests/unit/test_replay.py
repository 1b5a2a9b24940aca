"""Passes that share their lower blocks give what full passes give, in every family."""

import pytest
import torch
from _families import EVERY

LAYERS = 3


@pytest.fixture(params=EVERY)
def lm(request, tiny_lm):
    return tiny_lm(request.param)


@pytest.fixture
def tokens():
    return torch.randint(0, 257, (3, 17), generator=torch.Generator().manual_seed(0))


def point_sets(lm):
    from sae.types import Point

    single = [[Point(site, i % LAYERS)] for i, site in enumerate(lm.family.sites)]
    together = [
        [Point("resid", 1), Point("mlp_out", 1)],
        [Point("resid", 0), Point("attn_z", 1)],
        [Point("mlp_in", 2), Point("resid", 2), Point("attn_out", 1)],
    ]
    return single + together


def calls_of(lm, run):
    """How often each block ran while `run` did."""
    from sae.language.sites import family_of

    blocks = list(lm.model.get_submodule(family_of(lm.model).blocks).children())
    calls = [0] * len(blocks)
    own = [block.forward for block in blocks]

    def counted(i):
        def forward(*inputs, **options):
            calls[i] += 1
            return own[i](*inputs, **options)

        return forward

    for i, block in enumerate(blocks):
        block.forward = counted(i)
    try:
        run()
    finally:
        for block in blocks:
            del block.forward
    return calls


def test_the_same_logits_as_full_passes(lm, tokens):
    for points in point_sets(lm):
        conditions = [
            {},
            {point: lambda x: 0.9 * x for point in points},
            {point: torch.zeros_like for point in points},
            {points[0]: torch.ones_like},
        ]
        shared = list(lm.logits_under(tokens, conditions))
        for replace, logits in zip(conditions, shared, strict=True):
            assert torch.equal(logits, lm.logits(tokens, replace)), points


def test_the_clean_pass_need_not_be_the_first(lm, tokens):
    from sae.types import Point

    point = Point("resid", 1)
    conditions = [{point: torch.zeros_like}, {}, {point: lambda x: x.mul_(0)}, {}]
    zero, clean, again, last = lm.logits_under(tokens, conditions)
    assert torch.equal(clean, lm.logits(tokens))
    assert torch.equal(last, clean)
    assert torch.equal(zero, again)
    assert not torch.equal(zero, clean)


@pytest.mark.parametrize(
    ("site", "layer", "calls"),
    [("resid", 1, [1, 1, 3]), ("mlp_in", 1, [1, 3, 3]), ("attn_z", 2, [1, 1, 3]),
     ("attn_out", 0, [3, 3, 3]), ("resid", 2, [1, 1, 1])],
)  # fmt: skip
def test_the_blocks_below_run_once(lm, tokens, site, layer, calls):
    from sae.types import Point

    conditions = [{}, *[{Point(site, layer): torch.zeros_like}] * 2]
    assert calls_of(lm, lambda: list(lm.logits_under(tokens, conditions))) == calls


def test_without_points_every_pass_is_a_full_one(lm, tokens):
    one, two = lm.logits_under(tokens, [{}, {}])
    assert torch.equal(one, two)
    assert list(lm.logits_under(tokens, [])) == []


def test_variants_of_one_context_run_what_is_above(lm, tokens):
    from sae.types import Point

    one = tokens[:1]
    for start, end in (("resid", 2), ("attn_out", 1)):
        start, last = Point(start, 0), Point("resid", end)
        x, run = lm.variants(one, start, last)
        assert torch.equal(x, lm.capture(one, [start])[start])
        variants = torch.cat([x, 0.5 * x, torch.zeros_like(x)])
        made = run(variants)
        logits = lm.variants(one, start)[1](variants)
        for i, variant in enumerate(variants):
            replaced = {start: lambda _, variant=variant: variant[None]}
            alone = lm.differentiable_capture(one, [last], replaced)[last]
            torch.testing.assert_close(made[i : i + 1], alone, atol=1e-5, rtol=1e-4)
            alone = lm.logits(one, replaced)[:, -1:]
            torch.testing.assert_close(logits[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_variants_run_the_blocks_between_alone(lm, tokens):
    from sae.types import Point

    start, end = Point("resid", 0), Point("resid", 1)

    def all_of_it():
        x, run = lm.variants(tokens[:1], start, end)
        run(x.expand(4, -1, -1))
        run(x)

    assert calls_of(lm, all_of_it) == [1, 2, 0]


def test_gradients_flow_to_variants(lm, tokens):
    from sae.types import Point

    x, run = lm.variants(tokens[:1], Point("resid", 0), Point("resid", 2))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(leaf)[0, -1].sum(), leaf)
    assert gradient.isfinite().all()
    assert gradient[0, -1].abs().max() > 0


def test_the_lm_is_unharmed_by_errors(lm, tokens):
    from sae.errors import SiteError
    from sae.types import Point

    def explode(value):
        raise RuntimeError("replacement")

    before = lm.logits(tokens)
    point = Point("resid", 1)
    passes = lm.logits_under(tokens, [{}, {point: explode}])
    next(passes)
    with pytest.raises(RuntimeError, match="replacement"):
        next(passes)
    assert torch.equal(lm.logits(tokens), before)
    assert not any("forward" in module.__dict__ for module in lm.model.modules())
    with pytest.raises(SiteError, match="layer=7 does not exist"):
        list(lm.logits_under(tokens, [{Point("resid", 7): explode}]))


def test_blocks_that_return_tuples():
    from sae.language.replay import Replay

    class Block(torch.nn.Module):
        ran = 0

        def forward(self, x):
            self.ran += 1
            return x + 1, "attention"

    block = Block()
    replay = Replay([block])
    for _ in range(3):
        with replay.one_pass():
            out, attention = block(torch.zeros(2))
        assert out.tolist() == [1, 1]
        assert attention == "attention"
        out.zero_()
    assert block.ran == 1


def test_logits_at_one_position_of_each_context(lm):
    from sae.types import Point

    tokens, point = torch.arange(12).reshape(3, 4), Point("resid", 1)
    at = torch.tensor([3, 0, 2])
    run = lm.repeated(tokens, [point], at)
    for replace in ({}, {point: lambda x: 2 * x}, {}):
        expected = lm.logits(tokens, replace)[torch.arange(3), at][:, None]
        torch.testing.assert_close(run(replace), expected)
    assert lm.logits(tokens).shape[1] == 4  # nothing stays behind
