"""The Triton kernels against stock PyTorch and float64 loops; interpreted where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae.kernels import Pattern, atoms_sum, latent_values, ops, select_positive, stock

pytest.importorskip("triton", reason="Triton has wheels for Linux only")

from sae.kernels import triton_gpu  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEAR = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 1e-5, "atol": 2e-5},
    # summed in float32 and rounded once, by the interpreter towards zero: a unit in the last place
    torch.bfloat16: {"rtol": 2**-7, "atol": 2e-5},
}


@pytest.fixture(autouse=True)
def _triton_everywhere(monkeypatch):
    monkeypatch.setitem(ops._MODULES, "cpu", triton_gpu.__name__)


def same(one, other):
    return all(torch.equal(a.long(), b.long()) for a, b in zip(one, other, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 5),
    columns=st.integers(1, 40),
    k=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    steps=st.sampled_from([1, 4, 1000]),  # few steps: many equal values
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
    seed=st.integers(0, 99),
)
def test_selections_equal_stock_pytorch(rows, columns, k, dtype, steps, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(rows, columns, generator=generator) + shift
    pre = ((pre * steps).round() / steps).to(DEVICE, dtype)
    k = min(k, columns)
    cases = {"select_positive": pre.numel(), "select_topk": k, "select_batch_topk": k}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_gpu, "_SCAN", 16)  # rows of several blocks
        for name, number in cases.items():
            found = getattr(triton_gpu, name)(pre, number)
            assert same(found, getattr(stock, name)(pre, number)), name


def test_too_many_positives_are_not_selected():
    pre = torch.ones(3, 5, device=DEVICE)
    assert triton_gpu.select_positive(pre, 14) is None
    assert triton_gpu.select_positive(pre, 15) is not None


def test_nan_is_selected_and_stays_within_its_row():
    nan = torch.nan
    pre = torch.tensor([[nan, 1, 2], [nan, nan, nan], [-1, 3, -nan]], device=DEVICE)
    assert triton_gpu.select_positive(pre, 9)[1].tolist() == [0, 1, 2, 0, 1, 2, 1, 2]
    assert triton_gpu.select_topk(pre, 2)[1].tolist() == [0, 2, 0, 1, 1, 2]
    assert triton_gpu.select_batch_topk(pre, 2)[1].tolist() == [0, 0, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("d_in", "dtype"),
    [(1, torch.float32), (7, torch.float64), (64, torch.bfloat16), (576, torch.float32)],
)
def test_products_equal_float64_loops(d_in, dtype):
    mask = torch.rand(20, 23) < torch.rand(23)
    mask[3], mask[:, 4], mask[:, 5], mask[2] = True, True, False, False
    mask[2, 4] = d_in == 7  # a latent that fires on all rows, else a row where none does
    pattern = select_positive(mask.float().to(DEVICE))
    x, W = torch.randn(20, d_in, dtype=dtype), torch.randn(23, d_in, dtype=dtype)
    values = torch.randn(len(pattern.latents), dtype=dtype)
    dots, rows, latents = [], torch.zeros(20, d_in).double(), torch.zeros(23, d_in).double()
    for value, (r, j) in zip(values.double(), mask.nonzero().tolist(), strict=True):
        dots.append(x[r].double() @ W[j].double())
        rows[r] += value * W[j].double()
        latents[j] += value * x[r].double()
    W[5] = torch.nan  # of the latent that never fires: nobody may read it
    x, W, values = x.to(DEVICE), W.T.contiguous().to(DEVICE).T, values.to(DEVICE)  # W is strided
    for found, expected in (
        (triton_gpu.pair_dots(x, W, pattern), torch.stack(dots)),
        (triton_gpu.rows_sum(values, W, pattern), rows),
        (triton_gpu.latents_sum(values, x, pattern), latents),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.cpu().double(), expected, **NEAR[dtype])


def test_transposed_pattern_equals_stock():
    pattern = select_positive(torch.randn(30, 17, device=DEVICE))
    assert same(triton_gpu.transpose(pattern), stock.transpose(pattern))


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_selected(rows):
    pattern = select_positive(-torch.ones(rows, 5, device=DEVICE))
    W = torch.randn(5, 4, device=DEVICE, requires_grad=True)
    values = torch.zeros(0, device=DEVICE, requires_grad=True)
    x_hat = atoms_sum(values, W, pattern)
    x_hat.sum().backward()
    assert x_hat.shape == (rows, 4)
    assert not x_hat.any()
    assert not W.grad.any()
    assert values.grad.shape == (0,)


def test_gradients():
    x, W, bias = (
        torch.randn(*shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
        for shape in ((2, 2), (4, 2), (4,))
    )
    pattern = select_positive(torch.tensor([[1.0, 0, 1, 1], [0, 0, 0, 1]], device=DEVICE))

    def autoencode(x, W, bias):
        return atoms_sum(latent_values(x, W, bias, pattern).square(), W, pattern)

    assert torch.autograd.gradcheck(autoencode, (x, W, bias))


def test_matrices_of_more_than_2_to_the_31_elements():
    """Only the last row of W is ever written, so the system gives memory for no other."""
    d_in = 1 << 13
    W = torch.empty((1 << 18) + 1, d_in, dtype=torch.bfloat16, device=DEVICE)
    W[-1] = torch.arange(d_in) % 3
    offsets, latents = torch.tensor([0, 1]), torch.tensor([len(W) - 1])
    pattern = Pattern(offsets.to(DEVICE), latents.to(DEVICE), len(W))
    assert torch.equal(triton_gpu.rows_sum(torch.ones_like(W[0, :1]), W, pattern)[0], W[-1])
    square = W[-1].float().square().sum().item()
    assert triton_gpu.pair_dots(W[-1:], W, pattern).item() == pytest.approx(square, rel=2**-7)


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sae.kernels import triton_gpu

products = "*bf16 *bf16 *bf16 *i64 *i32 i32", {"PAIRS": 16, "WIDTH": 128}
for name, (types, sizes) in {
    "_count_row": ("*bf16 *bf16 *i64 *i64 i32", {"BLOCK": 1024}),
    "_fill_row": ("*bf16 *bf16 *i64 *i64 *i32 i32", {"BLOCK": 1024}),
    "_pair_dots": products,
    "_weighted_sums": products,
}.items():
    kernel, constants = getattr(triton_gpu, name), {"SUM": tl.float32} | sizes
    signature = dict(zip(kernel.arg_names, types.split() + ["constexpr"] * len(constants)))
    source = ASTSource(kernel, signature, constexprs=constants)
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target, {"enable_fp_fusion": True})
        print(name, capability, len(compiled.asm["cubin"]))
"""


def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path):
    """The interpreter accepts more than the compiler does."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 4 * 2 * 3
