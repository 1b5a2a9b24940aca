"""Training forward passes and gradients of other libraries, on equal weights."""

import pytest
import torch

from sae.dictionaries import build_dictionary

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore"),  # other libraries' own
]

D_IN, D_SAE, ROWS = 12, 36, 64


def x_of():
    return torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(1)) + 0.3


def ours(word, **settings):
    config = {"architecture": word, "dict_ratio": 3, **settings}
    dictionary = build_dictionary(config, d_in=D_IN, seed=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        dictionary.b_enc += 0.1 * torch.randn(D_SAE, generator=generator)
        dictionary.b_dec += 0.1 * torch.randn(D_IN, generator=generator)
        dictionary.encoder_rows += 0.1 * torch.randn(D_SAE, D_IN, generator=generator)
    return dictionary


def stepped(dictionary, x):
    output = dictionary.training_output(x)
    sum(output.terms.values()).backward()
    return output


def sae_lens_of(dictionary, kind, **settings):
    import sae_lens.saes as saes

    config = getattr(saes, f"{kind}TrainingSAEConfig")(d_in=D_IN, d_sae=D_SAE, **settings)
    sae = getattr(saes, f"{kind}TrainingSAE")(config)
    with torch.no_grad():
        sae.W_enc.copy_(dictionary.W_enc)
        sae.W_dec.copy_(dictionary.W_dec)
        sae.b_enc.copy_(dictionary.b_enc)
        sae.b_dec.copy_(dictionary.b_dec)
    return sae


def sae_lens_step(sae, x, coefficients):
    from sae_lens.saes.sae import TrainStepInput

    result = sae.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=None, n_training_steps=0,
            is_logging_step=False,
        )
    )  # fmt: skip
    result.loss.backward()
    return result


def compare(dictionary, output, grads, f, x_hat, loss_scale):
    """Outputs equal; gradients equal up to the factor between the two forms of the loss."""
    torch.testing.assert_close(output.code.dense(), f, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.x_hat, x_hat, rtol=1e-5, atol=1e-5)
    own = {
        "W_enc": dictionary.encoder_rows.grad.T, "W_dec": dictionary.W_dec.grad,
        "b_enc": dictionary.b_enc.grad, "b_dec": dictionary.b_dec.grad,
    }  # fmt: skip
    for name, grad in grads.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(
            own[name] * loss_scale, grad, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_april_equals_sae_lens_standard(kernels):
    dictionary, x = ours("april", l1=0.02), x_of()
    dictionary.kernels = kernels
    sae = sae_lens_of(dictionary, "Standard", l1_coefficient=1.0, apply_b_dec_to_input=False)
    output = stepped(dictionary, x)
    result = sae_lens_step(sae, x, {"l1": 0.02 * D_IN})
    grads = {name: getattr(sae, name).grad for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    compare(dictionary, output, grads, result.feature_acts, result.sae_out, D_IN)


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_l1_equals_sae_lens_standard_on_the_sphere(kernels):
    """Its penalty also pulls at the rows' norms: what is left on the sphere is compared."""
    dictionary, x = ours("l1", l1=0.02), x_of()
    dictionary.kernels = kernels
    sae = sae_lens_of(dictionary, "Standard", l1_coefficient=1.0, apply_b_dec_to_input=True)
    output = stepped(dictionary, x)
    result = sae_lens_step(sae, x, {"l1": 0.02 * D_IN})
    dictionary.before_step()
    grads = {name: getattr(sae, name).grad for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    rows = dictionary.W_dec.detach()
    grads["W_dec"] = grads["W_dec"] - (grads["W_dec"] * rows).sum(1, keepdim=True) * rows
    compare(dictionary, output, grads, result.feature_acts, result.sae_out, D_IN)


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_topk_equals_sae_lens(kernels):
    dictionary, x = ours("topk", k=4), x_of()
    dictionary.kernels = kernels
    sae = sae_lens_of(
        dictionary, "TopK", k=4, apply_b_dec_to_input=True, rescale_acts_by_decoder_norm=False,
        use_sparse_activations=False,
    )  # fmt: skip
    output = stepped(dictionary, x)
    result = sae_lens_step(sae, x, {})
    grads = {name: getattr(sae, name).grad for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    compare(dictionary, output, grads, result.feature_acts, result.sae_out, D_IN)


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_topk_equals_sparsify(kernels, monkeypatch):
    """Its loss is FVU of the batch; its Triton kernels are for GPUs."""
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # read when it is imported
    from sparsify import SparseCoder, SparseCoderConfig

    dictionary, x = ours("topk", k=4), x_of()
    dictionary.kernels = kernels
    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=4), dtype=torch.float32)
    with torch.no_grad():
        coder.encoder.weight.copy_(dictionary.encoder_rows)
        coder.encoder.bias.copy_(dictionary.b_enc)
        coder.W_dec.copy_(dictionary.W_dec)
        coder.b_dec.copy_(dictionary.b_dec)
    output = stepped(dictionary, x)
    result = coder(x)
    result.fvu.backward()
    f = torch.zeros(ROWS, D_SAE).scatter(1, result.latent_indices, result.latent_acts)
    variance = (x - x.mean(0)).square().sum()
    grads = {
        "W_enc": coder.encoder.weight.grad.T, "W_dec": coder.W_dec.grad,
        "b_enc": coder.encoder.bias.grad, "b_dec": coder.b_dec.grad,
    }  # fmt: skip
    compare(dictionary, output, grads, f.relu(), result.sae_out, x.numel() / variance)
