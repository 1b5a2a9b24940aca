"""Selecting with an int8 product: bounds against float64, what is found, what training ends at."""

import pytest
import torch
from _architectures import config_of
from torch.nn.functional import normalize

from sae.dictionaries import build_dictionary
from sae.dictionaries.codes import DenseCode, SparseCode
from sae.kernels import int8, numba_cpu, select_batch_topk, select_positive, select_topk

pytestmark = pytest.mark.skipif(not int8.available(), reason="this PyTorch has no such product")
D_IN = 100
RELU, TOPK = ("gated", "l1", "tied", "thresholding"), ("batch_topk", "topk")


def problem(rows=400, d_sae=1000):
    """Sums of a few atoms, with two dimensions far larger than the others, as in an LM."""
    generator = torch.Generator().manual_seed(0)
    W = normalize(torch.randn(d_sae, D_IN, generator=generator), dim=1)
    fires = torch.rand(rows, d_sae, generator=generator) < 0.01
    x = torch.rand(rows, d_sae, generator=generator) * fires @ W
    x[:, [3, 70]] += torch.tensor([30.0, -10.0])
    return x, W


@pytest.mark.slow
def test_whole_numbers_steps_and_norms_of_rows():
    matrix = torch.randn(7, 5) * torch.tensor([1e-6, 1e-3, 1, 1e3, 1e6, 0, 1])[:, None]
    counted = torch.tensor([1.0, 1, 0, 1, 1])
    kept = matrix.double() * counted
    for levels, dtype, shift in ((127, torch.uint8, 128), (63, torch.int8, 0)):
        found, steps, norms = numba_cpu.quantize_rows(matrix, counted, levels, dtype)
        whole = found.double() - shift
        assert whole.abs().amax(1).tolist() == [levels, levels, levels, levels, levels, 0, levels]
        assert ((whole * steps - kept).abs() <= 0.5001 * steps).all()
        torch.testing.assert_close(norms.double(), kept.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("x", [1, 128, 255])
@pytest.mark.parametrize("w", [-int8.W_LEVELS, int8.W_LEVELS])
def test_the_largest_numbers_are_added_up_exactly(x, w):
    """CPUs add two products of bytes in 16 bits, and cut off what does not fit."""
    xs = torch.full((70, 577), x, dtype=torch.uint8)
    ws = torch.full((130, 577), w, dtype=torch.int8)
    steps = torch.arange(1, 131).float()
    found = int8._add_product(torch.full((70, 130), 0.5), xs, ws, steps)
    torch.testing.assert_close(found, (0.5 + (x - 128) * w * 577 * steps).expand(70, 130))


def test_errors_are_as_large_as_the_margin_supposes():
    x, W = problem()
    W = W * torch.rand(len(W), 1).add(0.1)  # rows of several lengths
    bias = torch.randn(len(W))
    exact = x.double() @ W.double().T + bias
    bounds = int8.upper_bounds(x, W, bias)
    over = (bounds.pre.double() * bounds.units - exact) / W.norm(dim=1)
    margins = over.mean(1, keepdim=True)  # since errors have none
    assert ((over - margins) / margins * int8.SIGMAS).std() == pytest.approx(1, rel=0.02)
    assert 0 < (over < 0).double().mean() < 2e-4  # of normal errors 3e-5 exceed the margin
    assert margins.median() < 0.01 * exact.std()


def test_hardly_a_firing_latent_is_missed_and_few_others_are_candidates():
    x, W = problem()
    pre = x.double() @ W.double().T
    bias = -pre.quantile(0.97, dim=0).float()
    fires = pre + bias > 0
    found = select_positive(int8.upper_bounds(x, W, bias).pre)
    candidates = torch.zeros_like(fires)
    candidates[found.rows, found.latents] = True
    assert (candidates & fires).sum() > 0.9999 * fires.sum()
    assert candidates.sum() < 1.25 * fires.sum()


def test_rows_and_weights_of_zeros():
    bounds = int8.upper_bounds(torch.zeros(3, 40), torch.zeros(2, 40), torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(bounds.pre * bounds.units, torch.tensor([[2.0, -1.0]] * 3))
    assert int8.upper_bounds(torch.zeros(0, 40), torch.ones(2, 40), torch.ones(2)).pre.shape == (
        0,
        2,
    )


@pytest.mark.parametrize("select", [select_topk, select_batch_topk])
@pytest.mark.parametrize("rows", [0, 30])
def test_the_largest_of_candidates_equal_the_largest_of_all(select, rows):
    pre = torch.randn(rows, 50, generator=torch.Generator().manual_seed(0))
    expected = select(pre, 4)
    candidates = select_positive(pre + 0.1)  # some are negative
    values = pre[candidates.rows, candidates.latents]
    kept = int8.select_among(candidates, values, lambda matrix: select(matrix, 4))
    found = candidates.only(kept)
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert found.latents.tolist() == expected.latents.tolist()


def dictionary_of(word, kernels):
    changes = {"k": 10} if word in TOPK else {}
    config = config_of(word, dict_ratio=10, **changes)
    dictionary = build_dictionary(config, d_in=D_IN, seed=0)
    dictionary.kernels = kernels
    return dictionary


@pytest.mark.slow
@pytest.mark.parametrize("word", [*RELU, *TOPK])
def test_codes_and_gradients_are_those_of_float32(word, monkeypatch):
    x, W = problem()
    x[:, [3, 70]] *= 0.1
    products = []
    real = int8.upper_bounds
    monkeypatch.setattr(int8, "upper_bounds", lambda *given: products.append(0) or real(*given))
    outputs, grads = [], []
    for kernels in ("sparse", "int8"):
        dictionary = dictionary_of(word, kernels)
        if word in RELU:
            dictionary.b_enc.data.fill_(-0.75)
            for name in ("W", "encoder_rows"):
                if hasattr(dictionary, name):
                    getattr(dictionary, name).data.copy_(W)
        output = dictionary.training_output(x)
        torch.stack(list(output.terms.values())).sum().backward()
        outputs.append(output)
        grads.append({name: p.grad for name, p in dictionary.named_parameters()})
    assert len(products) == 1
    exact, near = (output.code for output in outputs)
    assert isinstance(near, SparseCode)
    apart = (exact.dense() != 0) != (near.dense() != 0)
    assert exact.l0().sum() > 1000
    assert apart.sum() <= 1e-3 * exact.l0().sum()
    both = ~apart
    torch.testing.assert_close(exact.dense()[both], near.dense()[both])
    torch.testing.assert_close(outputs[0].terms, outputs[1].terms, rtol=1e-3, atol=0)
    for name, grad in grads[0].items():
        if grad is not None:
            assert (grads[1][name] - grad).norm() <= 0.02 * grad.norm() + 1e-9, name


def test_a_code_that_is_not_sparse_is_the_dense_one():
    x, _ = problem()
    codes = [dictionary_of("l1", kernels).encode_code(x) for kernels in ("dense", "int8")]
    assert all(isinstance(code, DenseCode) for code in codes)
    assert torch.equal(codes[0].values, codes[1].values)


def test_where_the_product_is_not_there_float32_selects(monkeypatch):
    x, _ = problem()
    monkeypatch.setattr(int8, "available", lambda: False)
    monkeypatch.setattr(int8, "upper_bounds", lambda *given: pytest.fail("called"))
    codes = [dictionary_of("topk", kernels).encode_code(x) for kernels in ("sparse", "int8")]
    assert torch.equal(codes[0].dense(), codes[1].dense())


@pytest.mark.slow
@pytest.mark.parametrize("word", ["l1", "tied", "topk"])
def test_training_ends_at_the_same_dictionary(word):
    ends = []
    for kernels in ("auto", "int8"):
        dictionary, generator = dictionary_of(word, kernels), torch.Generator().manual_seed(1)
        atoms = normalize(torch.randn(1000, D_IN, generator=generator), dim=1)
        optimizer = torch.optim.Adam(dictionary.parameters(), lr=2e-3, fused=True)

        def batch(rows, atoms=atoms, generator=generator):
            fires = torch.rand(rows, 1000, generator=generator) < 0.01
            return 4 * torch.rand(rows, 1000, generator=generator) * fires @ atoms

        for _ in range(60):
            loss = torch.stack(list(dictionary.training_output(batch(256)).terms.values())).sum()
            optimizer.zero_grad()
            loss.backward()
            dictionary.before_step()
            optimizer.step()
            dictionary.after_step()
        dictionary.kernels, x = "dense", batch(4096)
        code = dictionary.encode_code(x)
        error = (x - dictionary.reconstruct(code, x)).square().sum() / (
            x - x.mean(0)
        ).square().sum()
        ends.append((error.item(), code.l0().double().mean().item()))
    assert ends[0][0] < 0.95
    assert ends[1] == pytest.approx(ends[0], rel=0.01)
