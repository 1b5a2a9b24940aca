"""The sparse step: selections, products and gradients against stock PyTorch and dense products."""

import numpy as np
import pytest
import torch
from _architectures import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.dictionaries import build_dictionary
from sae.dictionaries.codes import DenseCode, SparseCode
from sae.dictionaries.products import SPARSE_BELOW
from sae.dictionaries.step import StepState
from sae.kernels import (
    Pattern,
    atoms_sum,
    jump_gradients_,
    latent_entries,
    latent_values,
    normalize_rows_,
    numba_cpu,
    project_off_rows_,
    row_sums,
    select_above_up_to,
    select_batch_topk,
    select_positive,
    select_positive_up_to,
    select_topk,
    stock,
    unit_rows,
)

SAES = {word: {**case.settings, **({"k": 8} if "k" in case.settings else {})}
        for word, case in CASES.items()}  # fmt: skip


def same(one, other):
    return all(torch.equal(a.long(), b.long()) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 40),
    k=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    steps=st.sampled_from([1, 4, 1000]),  # few steps: many equal values
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_selections_equal_stock_pytorch(rows, columns, k, dtype, steps, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(rows, columns, generator=generator) + shift
    pre = ((pre * steps).round() / steps).to(dtype)
    k = min(k, columns)
    all_of_them = pre.numel()
    assert same(
        numba_cpu.select_positive(pre, all_of_them), stock.select_positive(pre, all_of_them)
    )
    assert same(numba_cpu.select_topk(pre, k), stock.select_topk(pre, k))
    assert same(numba_cpu.select_batch_topk(pre, k), stock.select_batch_topk(pre, k))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("large", [slice(0, None, 2), slice(1, None, 2), slice(0, 0)])
def test_selections_where_a_sample_of_the_rows_misleads(dtype, large):
    """Every second row is looked at first; it may have all of what is largest, or nothing of it."""
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(300, 1100, generator=generator)
    pre = (pre * 20).round() / 20  # many equal values
    pre[large] += 4
    pre = pre.to(dtype)
    for k in (1, 40, 1100):
        assert same(numba_cpu.select_topk(pre, k), stock.select_topk(pre, k))
        assert same(numba_cpu.select_batch_topk(pre, k), stock.select_batch_topk(pre, k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_exceeds_the_threshold_of_its_latent(dtype):
    pre, thresholds = torch.randn(30, 17).to(dtype), torch.randn(17).to(dtype)
    pre[3] = thresholds  # equal is not above
    above = pre > thresholds
    pattern = select_above_up_to(pre, thresholds, int(above.sum()))
    assert pattern.rows.tolist() == above.nonzero()[:, 0].tolist()
    assert pattern.latents.tolist() == above.nonzero()[:, 1].tolist()
    assert select_above_up_to(pre, thresholds, int(above.sum()) - 1) is None


def test_bfloat16_is_held_against_thresholds_of_float32():
    pre = torch.randn(40, 19).bfloat16()
    thresholds = pre[7].float()  # equal is not above
    thresholds[:6] *= 1 + 1e-4  # between two neighbours, on either side of zero
    thresholds[6:12] *= 1 - 1e-4
    pre[8], pre[9, 3], pre[9, 4] = -pre[7], torch.inf, -torch.inf
    above = pre.double() > thresholds.double()
    pattern = select_above_up_to(pre, thresholds, pre.numel())
    assert pattern.rows.tolist() == above.nonzero()[:, 0].tolist()
    assert pattern.latents.tolist() == above.nonzero()[:, 1].tolist()
    assert select_above_up_to(pre, thresholds, int(above.sum()) - 1) is None


@pytest.mark.slow
def test_gradients_of_a_jump_in_bfloat16_are_those_of_float64_rounded():
    pre, of_f = (torch.randn(150, 9).bfloat16() for _ in range(2))
    theta, bandwidth, at_zero = torch.rand(9) + 0.1, 1.5, 0.3
    fires = select_above_up_to(pre, theta, pre.numel())
    to_values = torch.randn(len(fires.latents))
    expected = of_f.double()
    sums = jump_gradients_(
        expected, to_values.double(), at_zero, pre.double(), theta.double(), bandwidth, fires
    )
    found = of_f.clone()
    of_theta, of_bias = jump_gradients_(found, to_values, at_zero, pre, theta, bandwidth, fires)
    assert torch.equal(found, expected.float().bfloat16())  # of float32, to the nearest
    torch.testing.assert_close(of_theta.double(), sums[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(of_bias.double(), sums[1], rtol=1e-5, atol=1e-4)


def test_gradients_of_a_jump_equal_loops():
    pre, of_f = (torch.randn(150, 9, dtype=torch.float64) for _ in range(2))
    theta, bandwidth, at_zero = torch.rand(9, dtype=torch.float64) + 0.1, 1.5, 0.3
    fires = select_above_up_to(pre, theta, pre.numel())
    to_values = torch.randn(len(fires.latents), dtype=torch.float64)
    expected, of_theta = of_f + at_zero, torch.zeros_like(theta)
    for pair, (r, j) in enumerate(zip(fires.rows.tolist(), fires.latents.tolist(), strict=True)):
        expected[r, j] += to_values[pair]
    for r in range(len(pre)):
        for j in range(9):
            above = pre[r, j] - theta[j]
            jump = expected[r, j] * theta[j] / bandwidth if abs(above) < bandwidth / 2 else 0
            of_theta[j] -= jump
            expected[r, j] = jump + (expected[r, j] if above > 0 else 0)
    for layout in (pre, pre.t().contiguous().t()):  # compiled, and stock for other strides
        found = of_f.clone()
        sums = jump_gradients_(found, to_values, at_zero, layout, theta, bandwidth, fires)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(sums, (of_theta, expected.sum(0)))


def test_extreme_values_are_ordered():
    pre = torch.tensor([[3e38, 1e-38, 1e-45, 0.0, -0.0, -1e-45, torch.inf, -torch.inf]])
    assert select_positive(pre).latents.tolist() == [0, 1, 2, 6]
    assert select_topk(pre, 2).latents.tolist() == [0, 6]
    assert select_batch_topk(pre, 3).latents.tolist() == [0, 1, 6]


def test_too_many_positives_are_not_selected():
    pre = torch.ones(3, 5)
    assert select_positive_up_to(pre, 14) is None
    assert select_positive_up_to(pre, 15) is not None


@pytest.mark.parametrize("d_in", [1, 7, 64])
def test_products_equal_loops(d_in):
    x, W = torch.randn(6, d_in), torch.randn(23, d_in)
    mask = torch.rand(6, 23) < 0.3
    mask[2], mask[:, 4], mask[:, 5] = False, True, False  # an empty row, a dense and a dead latent
    pattern = select_positive(mask.float())
    values = torch.randn(len(pattern.latents))
    pairs = mask.nonzero().tolist()
    dots = [float(x[r].double() @ W[j].double()) for r, j in pairs]
    rows, latents = np.zeros((6, d_in)), np.zeros((23, d_in))
    for value, (r, j) in zip(values.tolist(), pairs, strict=True):
        rows[r] += value * W[j].double().numpy()
        latents[j] += value * x[r].double().numpy()
    for backend in (numba_cpu, stock):
        for found, expected in (
            (backend.pair_dots(x, W, pattern), dots),
            (backend.rows_sum(values, W, pattern), rows),
            (backend.latents_sum(values, x, pattern), latents),
        ):
            torch.testing.assert_close(found, torch.tensor(np.array(expected)).float())


def test_transposed_pattern_equals_stock():
    pattern = select_positive(torch.randn(30, 17))
    assert same(numba_cpu.transpose(pattern), stock.transpose(pattern))


@pytest.mark.parametrize("pre", [-torch.ones(3, 5), torch.ones(0, 5)])
def test_nothing_selected(pre):
    pattern = select_positive(pre)
    W = torch.randn(5, 4, requires_grad=True)
    x_hat = atoms_sum(torch.zeros(0), W, pattern)
    x_hat.sum().backward()
    assert x_hat.shape == (len(pre), 4)
    assert not x_hat.any()
    assert not W.grad.any()


def test_gradients():
    x, W, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((6, 4), (9, 4), (9,))
    )
    pattern = select_positive((x @ W.T - 1).detach())

    def autoencode(x, W, bias):
        return atoms_sum(torch.relu(latent_values(x, W, bias, pattern)), W, pattern)

    assert torch.autograd.gradcheck(autoencode, (x, W, bias))
    assert torch.autograd.gradcheck(lambda vector: latent_entries(vector, pattern), (bias,))
    values = torch.rand(len(pattern.latents), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: row_sums(values, pattern), (values,))


def test_an_auxiliary_loss_on_dead_latents_needs_nothing_else():
    """AuxK (arXiv 2406.04093): the k largest of the dead latents reconstruct what is missing."""
    x, W_enc, W_dec = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((6, 4), (9, 4), (9, 4))
    )
    bias, missing = torch.randn(9, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    dead = torch.tensor([1, 4, 5, 8])
    pattern = select_topk((x @ W_enc[dead].T + bias[dead]), 2)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[pattern.rows, pattern.latents] = True
    grads = []
    for sparse in (True, False):
        given = [tensor.clone().requires_grad_() for tensor in (W_enc, bias, W_dec)]
        rows, b, atoms = (tensor[dead] for tensor in given)
        if sparse:
            values = torch.relu(latent_values(x, rows, b, pattern))
            guess = atoms_sum(values, atoms, pattern)
        else:
            guess = torch.relu(x @ rows.T + b) * mask @ atoms
        (guess - missing).square().mean().backward()
        grads.append([tensor.grad for tensor in given])
    torch.testing.assert_close(*grads)
    assert grads[0][0][dead].any()
    assert not grads[0][0][[0, 2, 3, 6, 7]].any()


def test_the_number_of_threads_changes_no_bit():
    x, W = torch.randn(50, 33), torch.randn(70, 33)
    pattern = select_topk(x @ W.T, 9)
    values = torch.randn(len(pattern.latents))
    pre, theta, none = torch.randn(70, 50), torch.rand(50), select_positive(-torch.ones(70, 50))
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append((
                numba_cpu.pair_dots(x, W, pattern),
                numba_cpu.rows_sum(values, W, pattern),
                numba_cpu.latents_sum(values, x, pattern),
                *jump_gradients_(W @ x.T, torch.ones(0), 0.1, pre, theta, 1.0, none),
            ))  # fmt: skip
            assert torch.get_num_threads() == n  # Numba's start must not change it
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def train(word, kernels, steps=200, autocast=False, dtype=torch.float32):
    """Loss curve, and the final dictionary with vectors it has not seen."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(96, 24, generator=generator), dim=1)
    config = {"architecture": word, "dict_ratio": 4, **SAES[word]}
    dictionary = build_dictionary(config, d_in=24).to(dtype)
    dictionary.kernels = kernels
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=3e-3, fused=True)
    losses = []

    def batch(size=128):
        f = torch.rand(size, 96, generator=generator)
        x = f * (torch.rand(size, 96, generator=generator) < 0.05) @ atoms * 4
        return x.to(dtype)

    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = dictionary.training_output(batch())
        loss = torch.stack(list(output.terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        dictionary.before_step()
        optimizer.step()
        dictionary.after_step()
        losses.append(loss.item())
    return torch.tensor(losses), dictionary, batch(8192)


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted(SAES))
def test_sparse_training_equals_dense_training(word):
    # float64: where a code jumps, float32's rounding decides now and then whether a pair fires,
    # and how a CPU orders its sums decides the rounding (the next test bounds that)
    dense, sparse = (
        train(word, kernels, dtype=torch.float64)[0] for kernels in ("dense", "sparse")
    )
    assert dense[-1] < dense[0] / 2
    torch.testing.assert_close(sparse, dense, rtol=1e-9, atol=0)


@pytest.mark.parametrize("word", ["gated", "jumprelu", "l1", "thresholding"])
def test_sparse_and_dense_codes_fire_apart_only_within_rounding(word):
    """Row 0 is put at every latent's threshold, as nearly as float32 can."""
    config = {"architecture": word, "dict_ratio": 4, **SAES[word]}
    dictionary, x = build_dictionary(config, d_in=24), torch.randn(64, 24)
    with torch.no_grad():
        W = dictionary.tensors().W_enc
        border = 0.0 if word in ("gated", "l1") else dictionary.thresholds()
        border = 0.9 * border if word == "thresholding" else border  # where its ramp begins
        dictionary.b_enc.copy_(border - x[0] @ W)
        terms = x.double(), W.double(), dictionary.b_enc.double()
        pre, size = terms[0] @ terms[1] + terms[2], terms[0].abs() @ terms[1].abs() + terms[2].abs()
        codes = []
        for kernels in ("dense", "sparse"):
            dictionary.kernels = kernels
            codes.append(dictionary.encode(x))
    apart = (codes[0] != 0) != (codes[1] != 0)
    eps = torch.finfo(torch.float32).eps
    # the rounding of 24 products and their sum, of the threshold and of its subtraction
    assert ((pre - border).abs() <= 30 * eps * (size + 1))[apart].all()
    assert not apart[1:].any()
    # the ramp of `thresholding` multiplies rounding by 10
    torch.testing.assert_close(*(code[1:] for code in codes), rtol=1e-5, atol=5e-5)


def test_jumprelu_steps_by_what_fires_where_more_is_within_reach():
    """At the default bandwidth most pairs are within reach of the kernel and few fire."""
    config = {"architecture": "jumprelu", "dict_ratio": 8, "l0_coefficient": 0.3, "threshold": 1.5}
    x, grads, outputs = torch.randn(600, 24, dtype=torch.float64), [], []
    for kernels in ("dense", "auto"):
        dictionary = build_dictionary(config, d_in=24).double()
        dictionary.encoder_rows.data.mul_(0.7 / dictionary.encoder_rows.norm(dim=1, keepdim=True))
        dictionary.kernels = kernels
        output = dictionary.training_output(x, StepState(penalty=0.5))
        torch.stack(list(output.terms.values())).sum().backward()
        grads.append({name: p.grad for name, p in dictionary.named_parameters()})
        outputs.append(output)
    dense, auto = outputs
    assert isinstance(dense.code, DenseCode)
    assert isinstance(auto.code, SparseCode)
    fired = (dense.code.values > 0).sum()
    assert 0 < fired == len(auto.code.values) < SPARSE_BELOW * dense.code.values.numel()
    torch.testing.assert_close(auto.code.dense(), dense.code.dense())
    torch.testing.assert_close(auto.terms, dense.terms)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-12)
    assert grads[0]["t"].any()


def test_jumprelu_steps_by_what_fires_under_autocast_too():
    config = {"architecture": "jumprelu", "dict_ratio": 8, "l0_coefficient": 0.3, "threshold": 1.5}
    x, grads, codes = torch.randn(600, 24), [], []
    for autocast in (False, True):
        dictionary = build_dictionary(config, d_in=24)
        dictionary.encoder_rows.data.mul_(0.7 / dictionary.encoder_rows.norm(dim=1, keepdim=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = dictionary.training_output(x, StepState(penalty=0.5))
        torch.stack(list(output.terms.values())).sum().backward()
        grads.append({name: p.grad for name, p in dictionary.named_parameters()})
        codes.append(output.code)
    exact, rough = codes
    assert isinstance(rough, SparseCode)
    assert rough.values.dtype == torch.float32
    both = (exact.dense() != 0) & (rough.dense() != 0)
    flipped = ((exact.dense() != 0) ^ (rough.dense() != 0)).sum() / both.sum()
    assert both.sum() > 100
    assert flipped < 0.02
    torch.testing.assert_close(rough.dense()[both], exact.dense()[both])  # not those of bfloat16
    for name, grad in grads[0].items():
        apart = (grads[1][name] - grad).norm() / grad.norm()
        assert apart < 0.02 + flipped.sqrt(), name


@pytest.mark.slow
@pytest.mark.parametrize("word", sorted(SAES))
def test_selecting_in_bfloat16_ends_at_the_same_dictionary(word):
    ends = []
    for kernels, autocast in (("dense", False), ("sparse", True)):
        _, dictionary, x = train(word, kernels, steps=400, autocast=autocast)
        code = dictionary.encode_code(x)
        error = (x - dictionary.reconstruct(code, x)).square().sum() / (
            x - x.mean(0)
        ).square().sum()
        ends.append((error.item(), code.l0().double().mean().item()))
    (fvu, l0), (other_fvu, other_l0) = ends
    # float32 runs of `thresholding` that differ in rounding alone end 0.3 % apart on these 8,192
    # vectors, and 1 % on 128 of them; thresholds whose gradient is an estimate learn from the few
    # values near them, which rounding moves in and out of reach: two such runs end farther apart.
    rel = 0.15 if CASES[word].estimated else 0.03
    assert other_fvu == pytest.approx(fvu, rel=rel)
    assert other_l0 == pytest.approx(l0, rel=rel)


def test_the_density_of_each_batch_decides():
    dictionary = build_dictionary({"architecture": "l1", "dict_ratio": 4, "l1": 0.0}, d_in=50)
    x = torch.randn(40, 50)
    pre = (dictionary.pre(x) - dictionary.b_enc).detach()
    for density, kind in ((1.5 * SPARSE_BELOW, DenseCode), (0.5 * SPARSE_BELOW, SparseCode)):
        dictionary.b_enc.data.fill_(-pre.flatten().quantile(1 - density).item())
        code = dictionary.encode_code(x)
        assert isinstance(code, kind)
        torch.testing.assert_close(code.dense(), torch.relu(dictionary.pre(x)))
        dictionary.kernels = "dense"
        assert isinstance(dictionary.encode_code(x), DenseCode)
        dictionary.kernels = "sparse"
        assert isinstance(dictionary.encode_code(x), SparseCode)
        dictionary.kernels = "auto"


def test_pattern_rows():
    pattern = Pattern(torch.tensor([0, 2, 2, 3]), torch.tensor([1, 4, 0]), 5)
    assert pattern.rows.tolist() == [0, 0, 2]
    by_latent = pattern.by_latent(stock.transpose)
    assert by_latent.offsets.tolist() == [0, 1, 2, 2, 2, 3]
    assert by_latent.rows.tolist() == [2, 0, 0]
    assert pattern.by_latent(numba_cpu.transpose) is by_latent  # sorted once


def test_unit_rows_has_the_right_gradient():
    weight = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_rows, (weight,))
    plain = weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit_rows(weight), plain)
    torch.testing.assert_close(unit_rows(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_rows_keep_their_length_and_gradients_their_tangent():
    weight, grad = torch.randn(7, 5), torch.randn(7, 5)
    for layout in (weight, weight.t().contiguous().t()):  # compiled, and stock for other strides
        unit, tangent = layout.clone(), grad.clone()
        normalize_rows_(unit)
        project_off_rows_(tangent, unit)
        torch.testing.assert_close(unit, torch.nn.functional.normalize(weight, dim=1))
        torch.testing.assert_close((tangent * unit).sum(1), torch.zeros(7))
        torch.testing.assert_close(tangent, grad - (grad * unit).sum(1, keepdim=True) * unit)
