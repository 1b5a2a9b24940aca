"""Hand-made numbers for every metric formula."""

import math

import pytest
import torch

from sae import functional as F
from sae.errors import DegenerateInputError


@pytest.fixture
def x() -> torch.Tensor:
    return torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])


def test_perfect_reconstruction(x):
    result = {name: value.item() for name, value in F.reconstruction(x, x).items()}
    assert result["fvu"] == 0
    assert result["mse"] == 0
    assert result["cosine"] == pytest.approx(1)
    assert result["l2_ratio"] == pytest.approx(1)
    assert result["relative_bias"] == pytest.approx(1)


def test_fvu_of_the_mean_is_exactly_one(x):
    assert F.fvu(x, x.mean(0).expand_as(x)).item() == 1.0


def test_constant_offset_costs(x):
    # The formula 1 - Var(error) / Var(x) calls this perfect.
    assert F.fvu(x, x + 1).item() == pytest.approx(6 / 34)  # 3 rows x 2; 8 + 26 around the mean


def test_fvu_of_equal_rows_is_an_error():
    x = torch.full((4, 3), 1.1)
    with pytest.raises(DegenerateInputError, match="two different rows"):
        F.fvu(x, x)


def test_mse_is_a_mean_over_rows_and_dimensions():
    x = torch.zeros(2, 4)
    x_hat = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    assert F.mse(x, x_hat).item() == 1.0


def test_shrinkage_shows_in_ratio_and_bias(x):
    assert F.l2_ratio(x, 0.8 * x).item() == pytest.approx(0.8)
    assert F.relative_bias(x, 0.8 * x).item() == pytest.approx(0.8)
    assert F.cosine(x, 0.8 * x).item() == pytest.approx(1)


def test_zero_vectors_have_cosine_zero_and_no_ratio(x):
    zeros = torch.zeros_like(x)
    assert F.cosine(x, zeros).item() == 0
    assert F.l2_ratio(x, zeros).item() == 0
    assert math.isnan(F.relative_bias(x, zeros).item())
    assert math.isnan(F.l2_ratio(zeros, x).item())


def test_l0_counts_signed_codes_and_keeps_leading_dims():
    f = torch.tensor([[[0.0, -1.0, 2.0]], [[0.0, 0.0, 1e-30]]])
    assert F.l0(f).tolist() == [[2], [1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [0, 3000])
def test_firing_counts_exactly(dtype, rows):
    f = torch.randn(rows, 40, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    by_row, by_latent = F.firing(f)
    assert torch.equal(by_row, F.l0(f))
    assert torch.equal(by_latent, (f != 0).sum(0))


def test_firing_histogram_puts_frequencies_where_they_belong():
    histogram = F.firing_histogram(torch.tensor([0.0, 0.0, 1.0, 0.0101, 1e-20]))
    edges, latents = histogram["log10_edges"], histogram["latents"]
    assert isinstance(edges, list)
    assert isinstance(latents, list)
    assert (edges[0], edges[-1], len(edges), len(latents)) == (-8, 0, 33, 32)
    assert histogram["silent"] == 2
    assert latents[0] == 1  # rarer than the first edge
    assert latents[-1] == 1  # fires always
    assert edges[latents.index(1, 1)] == -2


def test_prediction_mask_drops_first_last_and_boundaries():
    document = torch.tensor([[0, 0, 0, 1, 1, 2], [2, 2, 2, 2, 2, 2]])
    no, yes = False, True
    assert F.prediction_mask(document).tolist() == [
        [no, yes, no, yes, no],
        [no, yes, yes, yes, yes],
    ]
    assert F.prediction_mask(document, keep_first=True)[:, 0].all()
    assert document[0, 0] == 0  # the input is left alone


def test_cross_entropy_reads_the_next_token():
    logits = torch.zeros(1, 3, 3)
    logits[0, 0] = torch.tensor([0.0, math.log(2), 0.0])  # p(1) = 1/2 after position 0
    tokens = torch.tensor([[0, 1, 2]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    values = F.next_token_cross_entropy(logits, tokens, mask).tolist()
    assert values == pytest.approx([math.log(2), math.log(3)])
    assert F.next_token_cross_entropy(logits, tokens, ~mask).shape == (0,)


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.tensor([[0, 1, 2, 3]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    low = F.next_token_cross_entropy(logits, tokens, mask)
    assert low.dtype == torch.float32
    assert torch.equal(low, F.next_token_cross_entropy(logits.float(), tokens, mask))


def test_kl_of_known_distributions():
    p, q = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert F.kl_divergence(p.log(), q.log()).item() == pytest.approx(expected)
    assert F.kl_divergence(p.log(), p.log() + 3).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_is_finite_at_extreme_logits(dtype):
    clean = torch.tensor([[200.0, -200.0, 0.0]], dtype=dtype)
    other = torch.tensor([[-200.0, 200.0, 0.0]], dtype=dtype)
    assert F.kl_divergence(clean, other).tolist() == [400.0]
    assert F.kl_divergence(clean, clean).tolist() == [0.0]


def test_ce_recovered_and_its_undefined_cases():
    clean, sae, ablated = torch.tensor([3.0, 3.0, 3.0]), torch.tensor(4.0), torch.tensor(
        [8.0, 3.009, 2.0]
    )  # fmt: skip
    value = F.ce_recovered(clean, sae, ablated)
    assert value[0].item() == pytest.approx(0.8)
    assert value[1:].isnan().all()  # a gap under 0.01 nat, a harmless ablation


def test_perplexity_and_agreement():
    assert F.perplexity(torch.tensor(math.log(31.0))).item() == pytest.approx(31)
    clean = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    assert F.top1_agreement(clean, clean.flip(0)).tolist() == [False, False]
    assert F.top1_agreement(clean, 5 * clean).tolist() == [True, True]
