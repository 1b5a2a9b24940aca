"""Edits of codes against closed forms, in a tiny LM."""

import pytest
import torch
from _evals import CTX, POINT, VOCAB, TinyLM, coarse_sae
from _labelled import planted

from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.interventions import at, edited, projected_out, scaled, set_to, swapped, without

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sae() -> SAE:
    """More latents than dimensions, so that it reconstructs with an error."""
    return planted(torch.eye(8)[:3], torch.full((3,), 0.2), noise=4)


def test_edits_change_their_latents_alone(sae):
    f, other = sae.encode(X), sae.encode(-X)
    assert torch.equal(set_to([1, 3], 2.0)(f)[..., [1, 3]], torch.full((2, 5, 2), 2.0))
    assert torch.equal(scaled([2], -3.0)(f)[..., 2], -3 * f[..., 2])
    assert torch.equal(swapped([0, 4], other)(f)[..., [0, 4]], other[..., [0, 4]])
    mask = torch.arange(7) < 2
    assert torch.equal(set_to(mask, torch.tensor([5.0, 6.0]))(f)[0, 0, :2], torch.tensor([5.0, 6]))
    edits = [(set_to([1, 3], 2.0), {1, 3}), (scaled([2], -3.0), {2}),
             (swapped([0, 4], other), {0, 4}), (set_to(mask, 1.0), {0, 1})]  # fmt: skip
    for edit, latents in edits:
        rest = [i for i in range(7) if i not in latents]
        assert torch.equal(edit(f)[..., rest], f[..., rest])
    assert torch.equal(f, sae.encode(X))  # the code itself is left alone


def test_the_error_is_kept_or_dropped_by_name(sae):
    nothing = scaled([0], 1.0)
    assert torch.equal(edited(sae, nothing)(X), X)
    assert torch.equal(edited(sae, nothing, "dropped")(X), sae(X))
    assert not torch.allclose(sae(X), X)
    f = sae.encode(X)
    changed = edited(sae, set_to([1], 4.0))(X)
    torch.testing.assert_close(changed - X, (4 - f[..., 1:2]) * sae.W_dec[1], atol=1e-5, rtol=0)
    ablated = edited(sae, set_to([0, 2], 0.0))(X)
    mask = torch.zeros(7, dtype=torch.bool)
    mask[[0, 2]] = True
    slow = without(X.flatten(0, 1), f.flatten(0, 1), mask, sae.W_dec).view_as(X)
    torch.testing.assert_close(ablated, slow, atol=1e-5, rtol=0)


def test_nothing_is_left_in_the_directions(sae):
    cleaned = projected_out(sae.W_dec[3:5])(X)
    torch.testing.assert_close(cleaned @ sae.W_dec[3:5].T, torch.zeros(2, 5, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(projected_out(sae.W_dec[3:5])(cleaned), cleaned, atol=1e-5, rtol=0)


def test_directions_that_depend_on_each_other_span_no_more(sae):
    once = projected_out(sae.W_dec[3:4])(X)
    for rows in ([3, 3], [3, 3, 3]):
        torch.testing.assert_close(projected_out(sae.W_dec[rows])(X), once, atol=1e-5, rtol=0)
    assert torch.equal(projected_out(sae.W_dec[:0])(X), X)  # no direction at all
    with_zero = torch.cat([sae.W_dec[3:4], torch.zeros(1, 8)])
    torch.testing.assert_close(projected_out(with_zero)(X), once, atol=1e-5, rtol=0)
    assert torch.equal(projected_out(torch.zeros(1, 8))(X), X)


def test_positions_that_are_not_chosen_stay():
    chosen = torch.tensor([[True, False, False, True, False], [False] * 5])
    changed = at(chosen, lambda x: x + 1)(X)
    assert torch.equal(changed[chosen], X[chosen] + 1)
    assert torch.equal(changed[~chosen], X[~chosen])


def test_a_clamp_changes_the_logits_as_the_closed_form_says():
    lm, sae = TinyLM(), coarse_sae()
    tokens = torch.arange(CTX)[None] % VOCAB
    clean = lm.logits(tokens)
    clamped = lm.logits(tokens, {POINT: edited(sae, set_to([2], 10.0))})
    f = sae.encode(lm.activation(tokens))
    expected = clean + (10 - f[..., 2:3]) * (sae.W_dec[2] @ lm.unembed)
    torch.testing.assert_close(clamped, expected, atol=1e-3, rtol=1e-5)
    assert (clamped - clean).abs().max() > 1


def test_a_transcoder_has_nothing_to_edit():
    eye, zeros = torch.eye(4), torch.zeros(4)
    transcoder = SAE(eye, zeros, eye, zeros, SAEConfig("l1", "relu", 4, 4, d_out=4), W_skip=eye)
    with pytest.raises(ConfigError, match="transcoder"):
        edited(transcoder, scaled([0], 2.0))
