"""Gradients, surrogates and traps of the architectures, against slow formulas and differences.

Each trap is a mistake that is known from another library.
"""

import pytest
import torch
from _architectures import CASES, D_IN, D_SAE, WITH_AUXK, build, x_of

from sae.dictionaries import build_dictionary
from sae.dictionaries.auxk import auxk_loss
from sae.dictionaries.jumprelu import PACE, PULL
from sae.dictionaries.p_anneal import SMALLEST
from sae.dictionaries.sae import smooth_jump
from sae.dictionaries.step import StepState


def loss_of(dictionary, x, state=StepState()):  # noqa: B008
    return torch.stack(list(dictionary.training_output(x, state).terms.values())).sum()


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("word", "changes"),
    [
        *((word, {}) for word in sorted(CASES) if not CASES[word].estimated),
        ("gated", {"gate_trains_decoder": False}),
        ("topk", {"multi_k": True}),
    ],
)
def test_gradients_equal_finite_differences(word, changes, kernels):
    """Of the loss itself, float64, for every parameter; a frozen gate decoder is a constant."""
    dictionary = build(word, **changes).double()
    dictionary.kernels = kernels
    x = x_of(dtype=torch.float64)
    if word == "p_anneal":
        dictionary.p.fill_(0.6)
    loss_of(dictionary, x).backward()
    compare_with_differences(
        dict(dictionary.named_parameters()), lambda: _trained_loss(dictionary, x)
    )


def compare_with_differences(parameters, loss):
    """Gradients that are there against central differences of `loss`, along one direction each."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        along = (parameter.grad * step).sum().item()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-6 * step
            values.append(loss())
            with torch.no_grad():
                parameter -= sign * 1e-6 * step
        difference = (values[0] - values[1]) / 2e-6
        assert along == pytest.approx(difference, rel=2e-4, abs=2e-6), name


def _trained_loss(dictionary, x):
    """The loss as a function of the parameters, with what the gradient must not see held fixed."""
    if getattr(dictionary.config, "gate_trains_decoder", True) is not False:
        return loss_of(dictionary, x).item()
    output = dictionary.training_output(x)
    gate = dictionary.pre(x).relu()
    frozen = build("gated").double()  # the gate's decoder: a copy of the start
    by_gate = gate @ frozen.W_dec + frozen.b_dec
    terms = output.terms | {"gate": (x - by_gate).square().mean()}
    return sum(terms.values()).item()


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_jumprelu_thresholds_learn_by_the_published_estimates(kernels):
    """Equations 11 and 12 of 2407.14435 by a slow loop."""
    dictionary = build("jumprelu", bandwidth=0.85, threshold=0.57).double()
    dictionary.kernels = kernels
    x = x_of(50, dtype=torch.float64)
    output = dictionary.training_output(x)
    torch.stack(list(output.terms.values())).sum().backward()
    with torch.no_grad():
        pre, theta = dictionary.pre(x), dictionary.thresholds()
        width = dictionary.bandwidth
        error = 2 * (output.x_hat - x) / x.numel()
        expected = torch.zeros(D_SAE, dtype=torch.float64)
        seen = 0
        for row in range(len(x)):
            for latent in range(D_SAE):
                if abs(pre[row, latent] - theta[latent]) >= width / 2:
                    continue
                seen += 1
                of_f = error[row] @ dictionary.W_dec[latent]
                of_theta = -theta[latent] / width * of_f - 1e-2 / width / len(x)
                expected[latent] += of_theta * PACE * theta[latent]  # theta = e^(PACE t)
    assert seen > 50
    torch.testing.assert_close(dictionary.t.grad, expected)


def test_jumprelu_weights_get_the_gradient_of_what_fires():
    dictionary, x = build("jumprelu").double(), x_of(dtype=torch.float64)
    loss_of(dictionary, x).backward()
    pre = ((x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc).detach()
    mask = (pre > dictionary.thresholds()).double().detach()
    W_enc, b_enc = (
        t.detach().clone().requires_grad_() for t in (dictionary.W_enc, dictionary.b_enc)
    )
    f = mask * ((x - dictionary.b_dec.detach()) @ W_enc + b_enc)
    (x - f @ dictionary.W_dec.detach() - dictionary.b_dec.detach()).square().mean().backward()
    torch.testing.assert_close(dictionary.encoder_rows.grad, W_enc.grad.T)
    torch.testing.assert_close(dictionary.b_enc.grad, b_enc.grad)


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_jumprelu_by_tanh_lets_the_jump_reach_weights_and_pulls_dead_latents(kernels):
    """Every gradient of the recipe of January 2025, by a slow loop."""
    dictionary = build("jumprelu", penalty="tanh", bandwidth=0.85, threshold=0.57).double()
    dictionary.kernels = kernels
    x, dead = x_of(50, dtype=torch.float64), torch.arange(D_SAE) < 5
    output = dictionary.training_output(x, StepState(dead=dead))
    torch.stack(list(output.terms.values())).sum().backward()
    with torch.no_grad():
        pre, theta, width = dictionary.pre(x), dictionary.thresholds(), dictionary.bandwidth
        error = 2 * (output.x_hat - x) / x.numel()
        of_pre, of_theta = torch.zeros_like(pre), torch.zeros_like(theta)
        for row in range(len(x)):
            for latent in range(D_SAE):
                fires = pre[row, latent] > theta[latent]
                near = abs(pre[row, latent] - theta[latent]) < width / 2
                f = pre[row, latent] * fires
                of_f = error[row] @ dictionary.W_dec[latent]
                of_f += 1e-2 * 4 * (1 - torch.tanh(4 * f) ** 2) / len(x)
                jump = near * theta[latent] / width * of_f
                short = PULL / D_IN / len(x) * (dead[latent] and not fires)
                of_pre[row, latent] = fires * of_f + jump - short
                of_theta[latent] += short - jump
    close = torch.testing.assert_close
    close(dictionary.t.grad, of_theta * PACE * theta)
    close(dictionary.b_enc.grad, of_pre.sum(0))
    close(dictionary.encoder_rows.grad, of_pre.T @ (x - dictionary.b_dec.detach()))
    pull = PULL / D_IN * (theta - pre).relu()[:, dead].sum(1).mean()
    close(output.terms["pull"].detach(), pull)


@pytest.mark.parametrize(
    ("given", "threshold", "bandwidth"),
    [
        ({}, 0.7, 2.5),
        ({"penalty": "l0"}, 0.008, 0.008),  # 0.001 for rows of length 1, here of length 8
        ({"penalty": "l0", "threshold": 0.3}, 0.3, 0.008),
        ({"threshold": None, "bandwidth": 2.0}, 0.7, 2.0),
    ],
)
def test_a_penalty_of_jumprelu_brings_its_threshold_and_bandwidth(given, threshold, bandwidth):
    config = {"architecture": "jumprelu", "dict_ratio": 2, "l0_coefficient": 1e-3, **given}
    dictionary = build_dictionary(config, d_in=64)
    torch.testing.assert_close(dictionary.thresholds(), torch.full((128,), threshold))
    assert dictionary.bandwidth == pytest.approx(bandwidth)


def test_the_crosscoder_starts_at_the_mean_of_the_joined_layers():
    mean = torch.arange(12.0)
    dictionary = build_dictionary(
        {"architecture": "crosscoder", "dict_ratio": 4, "l1": 0.0, "start_bias": -1.0},
        d_in=12, widths=(5, 7), mean=mean,
    )  # fmt: skip
    assert torch.equal(dictionary.b_dec, mean)
    torch.testing.assert_close(dictionary.pre(mean[None])[0], torch.full_like(dictionary.b_enc, -1))


@pytest.mark.parametrize("word", ["l1", "april", "gated", "tied", "crosscoder"])
def test_encoders_start_sparse(word):
    """A sixth of the latents fires on white activations of the scale that they train on."""
    share = []
    for start_bias in (0.0, None):
        dictionary = build_dictionary(
            {"architecture": word, "dict_ratio": 8, "l1": 0.0, "start_bias": start_bias},
            d_in=64, mean=torch.full((64,), 3.0), seed=0,
        )  # fmt: skip
        x = torch.randn(500, 64) + (0 if word == "tied" else 3)
        share.append(dictionary.encode_code(x).l0().float().mean().item() / 512)
    assert share[0] == pytest.approx(0.5, abs=0.03)
    assert share[1] == pytest.approx(0.159, abs=0.03)


def test_smooth_jump_is_the_authors_function():
    t = torch.tensor(2.0)
    pre = torch.tensor([-1.0, 1.79, 1.9, 2.0, 5.0])
    torch.testing.assert_close(smooth_jump(pre, t), torch.tensor([0.0, 0.0, 1.0, 2.0, 5.0]))


@pytest.mark.parametrize("word", WITH_AUXK)
@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_auxk_trains_both_sides_of_dead_latents_and_of_no_others(word, kernels):
    """sparsify 1.3.3 gives the encoder no gradient from AuxK."""
    dictionary, x = build(word, k=2, auxk=1.0), x_of(40)
    dictionary.kernels = kernels
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[1, 5, 20]] = True
    output = dictionary.training_output(x, StepState(dead=dead))
    output.terms["auxk"].backward()
    for parameter in (dictionary.encoder_rows, dictionary.W_dec, dictionary.b_enc):
        moved = parameter.grad.reshape(D_SAE, -1).abs().sum(1) > 0
        assert torch.equal(moved, dead)
    assert dictionary.b_dec.grad is None  # all latents stand on it
    assert dictionary.training_output(x, StepState(dead=~dead & dead)).terms["auxk"] == 0
    assert "auxk" not in dictionary.training_output(x).terms


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_auxk_gradients_equal_finite_differences(kernels):
    """Of the dead latents' fit to an error that is held fixed."""
    dictionary, x = build("topk", k=2).double(), x_of(dtype=torch.float64)
    dictionary.kernels = kernels
    dead = torch.arange(D_SAE) % 3 == 0
    found = dictionary.encoding(x, x)
    found = found._replace(x_hat=found.x_hat.detach())
    auxk_loss(dictionary, found, dead).backward()
    compare_with_differences(
        {name: getattr(dictionary, name) for name in ("encoder_rows", "b_enc", "W_dec")},
        lambda: auxk_loss(dictionary, found, dead).item(),
    )


def test_auxk_equals_a_slow_loop():
    dictionary, x = build("topk", k=2), x_of(30)
    dead = torch.arange(D_SAE) % 3 == 0  # 8 dead latents, of which d_in / 2 = 4 may fire
    x_hat = dictionary(x).detach()
    loss = auxk_loss(dictionary, dictionary.encoding(x, x), dead)
    latents = dead.nonzero().flatten().tolist()
    missed = 0.0
    for row, error in zip(x, x - x_hat, strict=True):
        values = dictionary.pre(row[None])[0].tolist()
        pre = {j: values[j] for j in latents}
        chosen = sorted(pre, key=pre.get, reverse=True)[:4]
        fit = sum(max(pre[j], 0.0) * dictionary.W_dec[j].detach() for j in chosen)
        missed += float((error - fit).square().sum())
    assert loss.item() == pytest.approx(missed / x.numel(), rel=1e-5)


def test_multi_k_adds_an_eighth_of_the_larger_codes_error():
    small, large = build("topk", k=2, multi_k=True), build("topk", k=8)
    x = x_of(30)
    expected = (x - large(x)).square().mean() / 8
    torch.testing.assert_close(small.training_output(x).terms["multi_k"], expected)


def test_p_anneal_keeps_the_penalty_where_p_changes():
    dictionary, x = build("p_anneal"), x_of(200)
    before = dictionary.training_output(x, StepState(progress=0.1)).terms["sparsity"]
    seen = []
    for progress in (0.3, 0.5, 1.0):
        seen.append(dictionary.training_output(x, StepState(progress=progress)).terms["sparsity"])
        torch.testing.assert_close(seen[-1], before)
    assert dictionary.p.item() == pytest.approx(0.2)
    f = dictionary.encode(x).detach()
    powers = ((f + SMALLEST) ** 0.2 - SMALLEST**0.2).sum(1).mean()
    expected = 1e-2 * dictionary.factor.float() * powers
    torch.testing.assert_close(seen[-1].detach(), expected)
    other = x_of(200, seed=2)  # the factor is kept, not made anew for each batch
    now = dictionary.training_output(other, StepState(progress=1.0)).terms["sparsity"]
    assert not torch.isclose(now, dictionary.training_output(x).terms["sparsity"], rtol=1e-6)


def test_gated_fires_where_the_gate_is_open_however_strongly():
    dictionary, x = build("gated"), x_of(100)
    with torch.no_grad():
        dictionary.r_mag += 0.5 * torch.randn(D_SAE)
        dictionary.b_mag += 0.5
        dictionary.b_enc -= 0.3
    pi = dictionary.pre(x)
    magnitude = dictionary.r_mag.exp() * (pi - dictionary.b_enc) + dictionary.b_mag
    expected = (pi > 0) * magnitude.relu()
    torch.testing.assert_close(dictionary.encode(x), expected)
    assert ((pi > 0) & (magnitude < 0)).any() | ((pi < 0) & (magnitude > 0)).any()
    torch.testing.assert_close(dictionary.folded(1.0).encode(x), expected)


def test_april_norms_are_free_and_scaling_them_changes_nothing():
    dictionary, x = build("april"), x_of(50)
    before = dictionary.training_output(x)
    with torch.no_grad():
        dictionary.W_dec *= 3.0
        dictionary.encoder_rows /= 3.0
        dictionary.b_enc /= 3.0
    after = dictionary.training_output(x)
    torch.testing.assert_close(after.terms, before.terms)
    dictionary.after_step()
    assert dictionary.W_dec.norm(dim=1).mean().item() == pytest.approx(3.0)


@pytest.mark.parametrize("word", sorted(CASES))
def test_the_order_of_latents_means_nothing(word):
    """Permuting every latent parameter permutes the code and leaves the reconstruction."""
    dictionary, x = build(word), x_of(30)
    if word == "matryoshka":  # there it does, in training; the saved SAE has no prefixes
        dictionary.threshold.fill_(0.1)
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(0))
    f, x_hat = dictionary.encode(x), dictionary(x)
    with torch.no_grad():
        for parameter in dictionary.latent_parameters():
            parameter.copy_(parameter[order])
    torch.testing.assert_close(dictionary.encode(x), f[:, order])
    torch.testing.assert_close(dictionary(x), x_hat)
    named = set(dictionary.latent_parameters())
    for name, parameter in dictionary.named_parameters():
        assert parameter in named or D_SAE not in parameter.shape, name
