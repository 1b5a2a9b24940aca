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
    measured,
    orders,
    ranked,
    smallest,
)
from sae.interventions.masks import learn_mask, search_greedily
from sae.interventions.patching import Patching
from sae.language import LMSource
from sae.language.precision import in_float32
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
    torch.testing.assert_close(patching.logits(patching.step(patching.share_of(latents))), expected)


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
    share = mixed.share_of([3, 17, 30])
    ours, theirs = (one.outcome(share, difference, 1.0) for one in (mixed, alone))
    long = patching.outcome(share, difference, 1.0)
    for one, by_itself, others in zip(ours, theirs, long, strict=True):
        torch.testing.assert_close(one[1:2], by_itself)
        torch.testing.assert_close(one[[0, 2]], others[[0, 2]])


def test_signs_are_two_latents(lm):
    config = SAEConfig("pca", "identity", 32, 32)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))[0]
    rotation = SAE(basis.T.contiguous(), torch.zeros(32), basis, torch.zeros(32), config)
    plain = Patching(lm, rotation, POINT, None, TOKENS, OTHER, END)
    split = Patching(lm, rotation, POINT, None, TOKENS, OTHER, END, split=True)
    assert split.num_latents == 64
    torch.testing.assert_close(split.step(split.share_of([5, 37])), plain.step(plain.share_of([5])))
    f, f_other = (rotation.encode(lm.capture(ids, [POINT])[POINT]) for ids in (TOKENS, OTHER))
    positive = (f_other.relu() - f.relu())[..., 5, None] * basis[5]
    positive[:, 0] = 0.0
    torch.testing.assert_close(split.step(split.share_of([5])), positive)


def test_massive_rows_stay_on_either_side(lm, sae):
    """A limit between the norms of a row and of its counterfactual: the row is not edited."""
    x, other = (lm.capture(ids, [POINT])[POINT].norm(dim=-1) for ids in (TOKENS, OTHER))
    place = (x - other).abs()[:, 1:].flatten().argmax()
    prompt, position = int(place) // 4, int(place) % 4 + 1
    limit = float((x + other)[prompt, position]) / 2
    counted = Counted(RowRule(), (), {"resid.1": limit})
    patching = Patching(lm, sae, POINT, counted, TOKENS, OTHER, END)
    expected = (x <= limit) & (other <= limit)
    expected[:, 0] = False
    assert not expected[prompt, position]
    assert torch.equal(patching.edited, expected)
    step = patching.step(torch.ones(D_SAE), 1.0)
    assert (step.norm(dim=-1) > 0).logical_and(~expected).sum() == 0
    lengths = step.norm(dim=-1).sum(1) / expected.sum(1).clamp_min(1)
    torch.testing.assert_close(patching.outcome(torch.ones(D_SAE), difference, 1.0).edit, lengths)


def test_both_directions_of_the_kl(lm, patching):
    share = patching.share_of(range(0, D_SAE, 2))
    outcome = patching.outcome(share, difference)
    run = torch.log_softmax(patching.logits(patching.step(share)).double(), -1)
    target = torch.log_softmax(lm.logits(OTHER)[:, -1].double(), -1)
    forward = (target.exp() * (target - run)).sum(-1).float()
    backward = (run.exp() * (run - target)).sum(-1).float()
    torch.testing.assert_close(outcome.kl, forward, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(outcome.kl_paper, backward, rtol=1e-3, atol=1e-7)
    assert (forward - backward).abs().max() > 1e-6


@pytest.mark.parametrize("latents", [[-1], [D_SAE], [0, 99]])
def test_latents_that_the_sae_lacks(patching, latents):
    with pytest.raises(ConfigError, match=r"not all among the SAE's 40: give indices from 0 to 39"):
        patching.share_of(latents)
    with pytest.raises(ConfigError, match="not all among the SAE's 40"):
        patched_alone(patching, difference, latents)


def test_in_float32_and_back():
    lm = LMSource.from_config({"kind": "random", "name": "tiny", "family": "llama"}).load()
    lm.model.to(torch.bfloat16)
    before = {name: one.clone() for name, one in lm.model.state_dict().items()}
    buffers = {name: one.dtype for name, one in lm.model.named_buffers()}
    with in_float32(lm.model):
        assert lm.dtype == torch.float32
        assert lm.logits(TOKENS).dtype == torch.float32
    assert {name: one.dtype for name, one in lm.model.named_buffers()} == buffers
    for name, one in lm.model.state_dict().items():
        assert one.dtype == before[name].dtype
        assert torch.equal(one, before[name])


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
    patching.target = patching.logits(patching.step(patching.share_of(latents)))
    return patching


def strong(patching, count=4):
    """Latents whose patches move predictions most."""
    exact = [kl_moved(patching, i) for i in range(D_SAE)]
    return torch.tensor(exact).topk(count).indices.tolist()


def kl_moved(patching, latent):
    moved = patching.logits(patching.step(patching.share_of([latent])))
    return functional.kl_divergence(patching.clean, moved).sum().item()


@pytest.mark.slow
def test_a_mask_finds_a_planted_set(patching):
    latents = strong(patching)
    planted(patching, latents)
    found = learn_mask([patching], torch.arange(D_SAE), penalty=0.01, steps=150)
    assert sorted(found.tolist()) == sorted(latents)


@pytest.mark.slow
def test_the_greedy_search_against_a_slow_loop(lm, sae, patching):
    left = {}
    thresholds = [1e-6, 1e-4, 1e3]
    search_greedily(
        [patching], list(range(D_SAE)), thresholds, seed=0,
        found=lambda threshold, rest: left.update({threshold: rest}),
    )  # fmt: skip
    target = torch.log_softmax(lm.logits(OTHER)[:, -1].double(), -1)
    x = lm.capture(TOKENS, [POINT])[POINT]

    f, f_other = (sae.encode(lm.capture(ids, [POINT])[POINT]) for ids in (TOKENS, OTHER))
    change = (f_other - f) * (torch.arange(5) > 0)[:, None]

    def slow_kl(latents):
        new = x + torch.einsum("pcs,sd->pcd", change[..., latents], sae.W_dec[latents])
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


def test_ranks_and_orders(patching):
    ranks = ranked([Prompts(patching, difference)], steps=4)
    alive = patching.latents.tolist()
    for name, order in ranks.order.items():
        assert sorted(order) == alive
        effect = ranks.effects[name][order]
        falling = effect if name == "most active" else -effect
        assert (falling.diff() <= 0).all()
    found = orders(ranks, random_sets=2)
    assert [one[:2] for one in found[-2:]] == [("random", 0), ("random", 1)]
    assert sorted(found[-1][2]) == alive
    assert found[-1][2] != found[-2][2]


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
