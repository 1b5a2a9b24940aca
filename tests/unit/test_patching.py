"""Patched latents: the ends of the scale, slow references, estimates against exact patches."""

import pytest
import torch
from scipy.stats import spearmanr

from sae import functional
from sae.activations.counted import Counted, RowRule
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.interventions.attribution import attribution, integrated_gradients, patched_alone
from sae.interventions.causal_sets import (
    Prompts,
    growing,
    measured,
    ranked,
    sizes,
    smallest,
)
from sae.interventions.masks import learn_mask, search_greedily, share_of
from sae.interventions.patching import Patching
from sae.language import LMSource
from sae.types import Point

POINT, D_SAE = Point("resid", 1), 40


@pytest.fixture(scope="module")
def lm():
    return LMSource.from_config({"kind": "random", "name": "tiny", "family": "gpt2"}).load()


@pytest.fixture(scope="module")
def sae(lm):
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(D_SAE, 32, generator=generator), dim=1)
    config = SAEConfig("l1", "relu", 32, D_SAE)
    return SAE(W_dec.T.contiguous(), torch.full((D_SAE,), -0.05), W_dec, torch.zeros(32), config)


TOKENS = torch.tensor([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24], [0, 31, 12, 33, 34]])
END = torch.full((3,), 4)
OTHER = torch.tensor([[0, 41, 12, 13, 14], [0, 21, 52, 23, 24], [0, 61, 12, 63, 34]])


def difference(logits):
    return logits[:, 7] - logits[:, 8]


@pytest.fixture
def patching(lm, sae):
    return Patching(lm, sae, POINT, None, TOKENS, OTHER, END)


def kl(patching, share, error=0.0):
    return patching.outcome(share, difference, error).kl


def test_none_all_and_everything(patching):
    """None leaves the clean KL; latents and error leave nothing; latents alone a floor."""
    none, every = torch.zeros(D_SAE), torch.ones(D_SAE)
    clean = functional.kl_divergence(patching.target, patching.clean)
    torch.testing.assert_close(kl(patching, none), clean)
    assert kl(patching, every, 1.0).max() < 1e-6 < kl(patching, every).min() < clean.max()
    outcome = patching.outcome(every, difference, 1.0)
    torch.testing.assert_close(outcome.difference, difference(patching.target))
    lengths = patching.whole.norm(dim=-1).sum(1) / 4
    torch.testing.assert_close(outcome.edit, lengths)
    torch.testing.assert_close(
        outcome.kl_paper, functional.kl_divergence(patching.target, patching.target)
    )


def test_a_patch_decodes_the_changed_code_and_keeps_the_error(lm, sae, patching):
    """Against the definition: dec(f with S replaced) + (x - dec(f)), prompt by prompt."""
    latents = [3, 17, 30]
    x, other = (lm.capture(ids, [POINT])[POINT] for ids in (TOKENS, OTHER))
    f, f_other = sae.encode(x), sae.encode(other)
    changed = f.clone()
    changed[..., latents] = f_other[..., latents]
    new = sae.decode(changed) + (x - sae.decode(f))
    new[:, 0] = x[:, 0]
    expected = lm.logits(TOKENS, {POINT: lambda _: new})[:, -1]
    torch.testing.assert_close(
        patching.logits(patching.step(share_of(latents, patching))), expected
    )


def test_rows_that_do_not_count_stay(lm, sae):
    counted = Counted(RowRule(max_norm=None), (12,), {"resid.1": float("inf")})
    patching = Patching(lm, sae, POINT, counted, TOKENS, OTHER, END)
    expected = torch.ones(3, 5, dtype=torch.bool)
    expected[:, 0] = expected[0, 2] = expected[2, 2] = False
    assert torch.equal(patching.edited, expected)
    assert not patching.change[~expected].any()
    assert not patching.whole[~expected].any()
    assert not patching.gradient(difference)[~expected].any()


def test_prompts_of_several_lengths(lm, sae, patching):
    """Shorter prompts in a batch: as by themselves, whatever stands behind their ends."""
    tokens, other = TOKENS.clone(), OTHER.clone()
    tokens[1, 3:], other[1, 3:] = 99, 98
    end = torch.tensor([4, 2, 4])
    mixed = Patching(lm, sae, POINT, None, tokens, other, end)
    alone = Patching(lm, sae, POINT, None, TOKENS[1:2, :3], OTHER[1:2, :3], end[1:2])
    share = share_of([3, 17, 30], mixed)
    ours, theirs = (one.outcome(share, difference, 1.0) for one in (mixed, alone))
    long = patching.outcome(share, difference, 1.0)
    for one, by_itself, others in zip(ours, theirs, long, strict=True):
        torch.testing.assert_close(one[1:2], by_itself)
        torch.testing.assert_close(one[[0, 2]], others[[0, 2]])


def test_signs_are_two_latents(lm, sae):
    config = SAEConfig("pca", "identity", 32, 32)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    rotation = SAE(basis.T.contiguous(), torch.zeros(32), basis, torch.zeros(32), config)
    plain = Patching(lm, rotation, POINT, None, TOKENS, OTHER, END)
    split = Patching(lm, rotation, POINT, None, TOKENS, OTHER, END, split=True)
    both = torch.zeros(64)
    both[[5, 37]] = 1.0
    torch.testing.assert_close(split.step(both), plain.step(share_of([5], plain)))
    assert split.change.shape[-1] == 64
    f = plain.change + rotation.encode(lm.capture(TOKENS, [POINT])[POINT])
    torch.testing.assert_close(
        split.change[..., 5], f.relu()[..., 5] - (f - plain.change).relu()[..., 5]
    )


def test_integrated_gradients_sum_to_the_change(patching):
    effects = integrated_gradients(patching, difference, steps=10)
    change = (difference(patching.target) - difference(patching.clean)).sum().item()
    assert float(effects.latents.sum()) + effects.error == pytest.approx(change, rel=0.01)


def test_attribution_is_the_slope_of_a_small_patch(patching):
    effects = attribution(patching, difference)
    for latent in (3, 17, 30):
        share = torch.zeros(D_SAE)
        share[latent] = 1e-2
        moved = difference(patching.logits(patching.step(share))) - difference(patching.clean)
        slope = moved.sum().item() / 1e-2
        assert float(effects.latents[latent]) == pytest.approx(slope, rel=0.05, abs=2e-4)


def test_attribution_orders_latents_as_exact_patches_do(patching):
    effects = attribution(patching, difference)
    exact = patched_alone(patching, difference, range(D_SAE))
    assert spearmanr(effects.latents, exact).statistic > 0.95


def planted(patching, latents):
    """The same prompts, whose counterfactuals differ in some latents alone."""
    patching.target = patching.logits(patching.step(share_of(latents, patching)))
    return patching


def strong(patching, count=4):
    """Latents whose patches move predictions most."""
    exact = [kl_moved(patching, i) for i in range(D_SAE)]
    return torch.tensor(exact).topk(count).indices.tolist()


def kl_moved(patching, latent):
    moved = patching.logits(patching.step(share_of([latent], patching)))
    return functional.kl_divergence(patching.clean, moved).sum().item()


def test_a_mask_finds_a_planted_set(patching):
    latents = strong(patching)
    planted(patching, latents)
    found = learn_mask([patching], torch.arange(D_SAE), penalty=0.01, steps=150)
    assert sorted(found.tolist()) == sorted(latents)


def test_the_greedy_search_against_a_slow_loop(lm, patching):
    left = {}
    thresholds = [1e-6, 1e-4, 1e3]
    search_greedily(
        [patching], list(range(D_SAE)), thresholds, seed=0,
        found=lambda threshold, rest: left.update({threshold: rest}),
    )  # fmt: skip
    target = torch.log_softmax(lm.logits(OTHER)[:, -1].double(), -1)
    x = lm.capture(TOKENS, [POINT])[POINT]

    def slow_kl(latents):
        new = x + torch.einsum(
            "pcs,sd->pcd", patching.change[..., latents], patching.W_dec[latents]
        )
        run = torch.log_softmax(lm.logits(TOKENS, {POINT: lambda _: new})[:, -1].double(), -1)
        return (run.exp() * (run - target)).sum(-1).mean().item()

    generator, rest = torch.Generator().manual_seed(0), list(range(D_SAE))
    for threshold in thresholds:
        for latent in [rest[i] for i in torch.randperm(len(rest), generator=generator)]:
            fewer = [one for one in rest if one != latent]
            if slow_kl(fewer) - slow_kl(rest) < threshold:
                rest = fewer
        assert left[threshold] == rest
    assert 0 < len(left[1e-6]) < D_SAE
    assert left[1e3] == []  # everything may go


def test_ranks_and_growing_sets(lm, sae, patching):
    prompts = [Prompts(patching, difference)]
    ranks = ranked(prompts, steps=4)
    alive = (patching.change != 0).any(0).any(0)
    for name, order in ranks.order.items():
        assert sorted(order) == alive.nonzero().squeeze(1).tolist()
        effect = ranks.effects[name][order]
        falling = effect if name == "most active" else -effect
        assert (falling.diff() <= 0).all()
    found = list(growing(ranks, points=3, random_sets=2))
    assert [one[0] for one in found[:5]] == [*ranks.order, "random", "random"]
    assert [len(one[2]) for one in found[::5]] == sizes(len(ranks.order["attribution"]), 3)
    assert found[3][2] != found[4][2]


def test_the_smallest_set_against_a_scan(patching):
    prompts = [Prompts(patching, difference)]
    order = ranked(prompts, steps=2).order["attribution"]
    kls = [float(measured(prompts, order[:n]).kl.mean()) for n in range(len(order) + 1)]
    limit = (kls[0] + min(kls)) / 2
    known = {n: kls[n] for n in (1, 4, 16, len(order))}
    found = smallest(prompts, order, limit, known)
    assert found is not None
    assert kls[found] <= limit < kls[found - 1]
    assert smallest(prompts, order, -1.0, known) is None


def test_batches_join(lm, sae, patching):
    def one(i):
        return Patching(lm, sae, POINT, None, TOKENS[i : i + 1], OTHER[i : i + 1], END[:1])

    parts = [Prompts(one(i), difference) for i in range(3)]
    whole = [Prompts(patching, difference)]
    for one, other in zip(measured(parts, [3, 9]), measured(whole, [3, 9]), strict=True):
        torch.testing.assert_close(one, other)
    one, other = measured(parts, [3], without=True), measured(whole, [3], without=True)
    torch.testing.assert_close(one.kl, other.kl)
    torch.testing.assert_close(
        ranked(parts, 2).effects["attribution"], ranked(whole, 2).effects["attribution"]
    )


def test_a_transcoder_is_refused(lm):
    config = SAEConfig("l1", "relu", 32, 16, d_out=16)
    transcoder = SAE(torch.ones(32, 16), torch.zeros(16), torch.eye(16), torch.zeros(16), config)
    with pytest.raises(ConfigError, match="cannot be written back"):
        Patching(lm, transcoder, POINT, None, TOKENS, OTHER, END)
