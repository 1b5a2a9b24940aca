"""Contract of every trainable dictionary, and what is particular to each."""

import pytest
import torch
from _architectures import CASES, RATIO, WITH_AUXK, config_of, expected_terms

import sae
from sae.dictionaries import ARCHITECTURES, build_dictionary
from sae.dictionaries.codes import DenseCode, SparseCode
from sae.dictionaries.step import StepState
from sae.errors import ConfigError
from sae.kernels import select_topk

D_IN = 12


def build(word, *, seed=0, mean=None, **changes):
    return build_dictionary(config_of(word, **changes), d_in=D_IN, mean=mean, seed=seed)


def x_of(rows=20, seed=1):
    return torch.randn(rows, D_IN, generator=torch.Generator().manual_seed(seed)) + 0.5


@pytest.fixture(params=sorted(ARCHITECTURES))
def word(request):
    return request.param


def test_every_architecture_has_a_case_and_a_yaml(word):
    from conf.options import FOLDER

    assert word in CASES, "add the new architecture to tests/unit/_architectures.py"
    assert f"architecture: {word}" in (FOLDER / "sae" / f"{word}.yaml").read_text()


def test_shapes_and_seed(word):
    one, two, other = build(word), build(word), build(word, seed=1)
    x = x_of()
    assert one.encode(x).shape == (20, D_IN * RATIO)
    assert one(x).shape == x.shape
    assert torch.equal(one(x), two(x))
    assert not torch.equal(one(x), other(x))


def test_code_agrees_with_dense_activations(word):
    dictionary, x = build(word), x_of()
    code, f = dictionary.encode_code(x), dictionary.encode(x)
    assert torch.equal(code.l0(), (f != 0).sum(1))
    assert torch.equal(code.firing_counts(), (f != 0).sum(0))
    torch.testing.assert_close(code.l1(), f.abs().sum(1))


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_codes_are_those_of_dense_products(word, kernels):
    dictionary, x = shaken(word).double(), x_of().double()
    dictionary.kernels = kernels
    f = dictionary.training_output(x).code.dense()
    torch.testing.assert_close(f, CASES[word].code(dictionary, x))
    assert 0 < f.count_nonzero() < f.numel()


def test_loss_terms_are_what_the_architecture_says(word):
    """Every term of every architecture by a dense formula, at 0.5 of the penalty."""
    dictionary, x = build(word), x_of()
    for dead in (None, torch.arange(D_IN * RATIO) % 5 == 0):
        output = dictionary.training_output(x, StepState(0.5, dead=dead))
        expected = expected_terms(word, dictionary, x, x, output, penalty=0.5, dead=dead)
        assert output.terms.keys() == expected.keys()
        torch.testing.assert_close(output.terms, expected)


@pytest.mark.parametrize("word", WITH_AUXK)
def test_auxk_is_zero_where_nothing_is_dead(word):
    """A term that were left out would be logged with the last value that it had."""
    dictionary = build(word)
    nobody = torch.zeros(D_IN * RATIO, dtype=torch.bool)
    assert dictionary.training_output(x_of(), StepState(dead=nobody)).terms["auxk"] == 0
    assert dictionary.training_output(x_of(), StepState(dead=~nobody)).terms["auxk"] > 0


def test_row_losses_average_to_the_loss(word):
    dictionary, x = build(word), x_of()
    terms = dictionary.training_output(x).terms
    if hasattr(dictionary, "_smallest"):  # row losses are those of the codes in evaluation
        dictionary.threshold.fill_(dictionary._smallest - 1e-6)
    torch.testing.assert_close(dictionary.row_losses(x).mean(), sum(terms.values()).detach())


def test_row_losses_of_jumprelu_by_tanh_average_to_the_loss():
    dictionary, x = build("jumprelu", penalty="tanh", bandwidth=2.0), x_of()
    terms = dictionary.training_output(x).terms
    torch.testing.assert_close(dictionary.row_losses(x).mean(), sum(terms.values()).detach())


def shaken(word):
    """Away from the start, where biases and thresholds are still equal."""
    dictionary = build(word, mean=x_of().mean(0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in dictionary.named_buffers():
            if name == "threshold":  # what batch_topk and matryoshka learn without a gradient
                buffer += 0.7
        dictionary.after_step()
    return dictionary


@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_folded_sae_maps_lm_units_to_lm_units(word, scale):
    dictionary, x = shaken(word), x_of()
    folded = dictionary.folded(scale, {"note": "kept"})
    raw = x / scale
    torch.testing.assert_close(folded(raw), dictionary(x) / scale, atol=2e-5, rtol=2e-5)
    lengths = dictionary.tensors().W_dec.norm(dim=1)  # unit rows: f takes their length
    if CASES[word].gain:
        lengths = torch.ones(D_IN * RATIO)
    expected = lengths * dictionary.encode(x) / scale
    torch.testing.assert_close(folded.encode(raw), expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(D_IN * RATIO))
    assert folded.metadata["note"] == "kept"


def test_what_is_saved_is_what_is_loaded(word, tmp_path):
    x, before = x_of(), shaken(word).folded(0.5)
    sae.save_sae(tmp_path / "sae", before)
    after = sae.load(tmp_path / "sae")
    assert torch.equal(after.encode(x), before.encode(x))
    assert torch.equal(after(x), before(x))


def test_centred_tied_is_folded_too():
    mean = torch.full((D_IN,), 0.5)
    dictionary, x = build("tied", mean=mean, centre="mean"), x_of()
    torch.testing.assert_close(dictionary.folded(2.0)(x / 2), dictionary(x) / 2)
    plain = build("tied", centre="none")
    torch.testing.assert_close(dictionary(x), plain(x - mean) + mean)


def test_gradients_reach_every_parameter(word):
    dictionary = build(word)
    sum(dictionary.training_output(x_of(200)).terms.values()).backward()
    for name, parameter in dictionary.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("word", ["l1", "topk", "batch_topk"])
def test_decoder_stays_on_the_sphere_and_moves_along_it(word):
    dictionary = build(word)
    optimizer = torch.optim.SGD(dictionary.parameters(), lr=0.1)
    sum(dictionary.training_output(x_of(200)).terms.values()).backward()
    dictionary.before_step()
    parallel = (dictionary.W_dec.grad * dictionary.W_dec).sum(1)
    torch.testing.assert_close(parallel, torch.zeros_like(parallel), atol=1e-6, rtol=0)
    before = dictionary.W_dec.detach().clone()
    optimizer.step()
    dictionary.after_step()
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(D_IN * RATIO))
    assert not torch.equal(before, dictionary.W_dec)


def test_tied_equals_the_papers_equations():
    """A slow loop over eq. 1-3 with unit rows (arXiv 2309.08600)."""
    dictionary, x = build("tied"), x_of(5)
    W, b = dictionary.W.detach(), dictionary.b_enc.detach() + 0.05
    dictionary.b_enc.data = b
    for row, x_hat in zip(x, dictionary(x), strict=True):
        expected = torch.zeros(D_IN)
        for atom, bias in zip(W, b, strict=True):
            atom = atom / atom.norm()
            expected += max(float(atom @ row + bias), 0.0) * atom
        torch.testing.assert_close(x_hat, expected)


def test_tied_penalty_cannot_be_beaten_by_longer_rows():
    dictionary, x = build("tied"), x_of()
    before = dictionary.training_output(x)
    dictionary.W.data *= 7
    after = dictionary.training_output(x)
    torch.testing.assert_close(before.terms, after.terms)


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_decoder_bias_gets_both_of_its_gradients(kernels):
    dictionary, x = build("l1", mean=torch.linspace(-1, 1, D_IN)), x_of(200)
    dictionary.kernels = kernels
    sum(dictionary.training_output(x).terms.values()).backward()
    W_enc, b_enc, W_dec, b_dec = (
        parameter.detach().clone().requires_grad_()
        for parameter in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec, dictionary.b_dec)
    )
    f = torch.relu((x - b_dec) @ W_enc + b_enc)
    ((x - f @ W_dec - b_dec).square().mean() + 1e-2 * f.sum(1).mean()).backward()
    torch.testing.assert_close(dictionary.encoder_rows.grad, W_enc.grad.T)
    for plain, name in ((b_enc, "b_enc"), (W_dec, "W_dec"), (b_dec, "b_dec")):
        torch.testing.assert_close(getattr(dictionary, name).grad, plain.grad)


def test_batch_topk_shares_the_budget_and_ends_as_jumprelu():
    dictionary, x = build("batch_topk", k=4), x_of(50)
    pre = dictionary.pre(x)
    smallest = pre.flatten().topk(4 * 50).values.min()
    f = dictionary.training_output(x).code.dense()
    torch.testing.assert_close(f, pre * (pre >= smallest))
    assert f.count_nonzero() == 4 * 50
    assert len(set((f != 0).sum(1).tolist())) > 1  # some vectors have more latents than others

    dictionary.after_step()
    assert torch.equal(dictionary.threshold, smallest)  # exact while few batches were seen
    torch.testing.assert_close(dictionary.encode(x), pre * (pre > smallest))
    alone = torch.cat([dictionary.encode(row[None]) for row in x])
    torch.testing.assert_close(alone, dictionary.encode(x))  # whatever the others are


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_batch_topk_where_nothing_fires(kernels):
    dictionary = build("batch_topk", k=4)
    dictionary.kernels = kernels
    output = dictionary.training_output(torch.zeros(8, D_IN))
    sum(output.terms.values()).backward()
    dictionary.after_step()
    assert output.code.l0().sum() == 0
    assert dictionary.threshold == 0


def test_batch_topk_threshold_is_a_running_mean():
    dictionary = build("batch_topk", k=4)
    seen = []
    for seed in range(5):
        x = x_of(50, seed)
        seen.append(dictionary.pre(x).flatten().topk(4 * 50).values.min())
        dictionary.training_output(x)
        dictionary.after_step()
    torch.testing.assert_close(dictionary.threshold, torch.stack(seen).mean())


def test_sparse_code_gradient_equals_the_dense_one():
    pattern = select_topk(torch.randn(5, 7, dtype=torch.float64), 3)
    values = torch.rand(len(pattern.latents), dtype=torch.float64, requires_grad=True)
    W = torch.randn(7, 4, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda v: SparseCode(pattern, v).dense() @ W, (values,))
    code = SparseCode(pattern, values.detach())
    torch.testing.assert_close(code.atoms_sum(W), code.dense() @ W)
    assert torch.equal(code.l0(), DenseCode(code.dense()).l0())


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"architecture": "relu"}, ("relu", *CASES)),
        ({"architecture": "tied", "dict_ratio": 0, "l1": 1}, ("dict_ratio=0", "above 0")),
        ({"architecture": "tied", "dict_ratio": 2, "l1": -1.0}, ("l1=-1.0", "at least 0")),
        ({"architecture": "tied", "l1": 1.0, "centre": "mean"}, ("centre=mean",)),
        ({"architecture": "tied", "l1": 1.0, "centre": "all"}, ("centre=all", "none", "mean")),
        ({"architecture": "topk", "dict_ratio": 2, "k": 0}, ("k=0", "at least 1")),
        ({"architecture": "topk", "dict_ratio": 2, "k": 25}, ("k=25", "d_sae=24")),
        ({"architecture": "topk", "dict_ratio": 2, "k": True}, ("k=true", "whole number")),
        ({"architecture": "topk", "dict_ratio": 2, "k": "2"}, ("k=2", "whole number")),
        ({"architecture": "tied", "dict_ratio": 2, "l1": float("nan")}, ("l1=nan",)),
        ({"architecture": "topk", "dict_ratio": 2, "k": 2, "l1": 1}, ("l1", "k", "auxk")),
        ({"architecture": "matryoshka", "prefixes": [0.5]}, ("prefixes=[0.5]",)),
    ],
)
def test_bad_settings_name_key_and_what_is_allowed(config, named):
    with pytest.raises(ConfigError) as caught:
        build_dictionary(config, d_in=D_IN)
    for part in named:
        assert part in str(caught.value)
