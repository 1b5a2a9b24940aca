"""What must hold for any data: splits, order and scale of the rows do not matter."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae import functional
from sae.metrics import Firing, NextToken, Reconstruction

SCALE_FREE = ("fvu", "cosine", "l2_ratio", "relative_bias", "l0")


@st.composite
def batches(draw) -> tuple[Tensor, Tensor, Tensor, Tensor, list[int]]:
    """x, x_hat, l0 and documents of some rows, and where to cut them."""
    rows, d_in = draw(st.integers(2, 40)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    mean, noise = draw(st.floats(-50, 50)), draw(st.floats(0.01, 3))
    x = mean + torch.randn(rows, d_in, generator=generator)
    x_hat = x + noise * torch.randn(rows, d_in, generator=generator)
    l0 = torch.randint(0, 50, (rows,), generator=generator)
    document = torch.randint(0, 7, (rows,), generator=generator)
    return x, x_hat, l0, document, sorted(draw(st.lists(st.integers(0, rows), max_size=5)))


def measured(*rows: Tensor, cuts: list[int] = []) -> Reconstruction:  # noqa: B006
    metric = Reconstruction(rows[0].shape[1])
    for parts in zip(*(tensor.tensor_split(cuts) for tensor in rows), strict=True):
        metric.update(*parts)
    return metric


def defined(values: Mapping[str, float | None]) -> dict[str, float]:
    """With NaN for None, so that pytest.approx can compare."""
    return {name: float("nan") if value is None else value for name, value in values.items()}


def close(values: Mapping[str, float | None], rel: float, abs: float = 0.0) -> object:
    return pytest.approx(defined(values), rel=rel, abs=abs, nan_ok=True)


@given(batches())
@settings(deadline=None, max_examples=60)
def test_any_split_into_batches_gives_the_total(data):
    *rows, cuts = data
    split, whole = measured(*rows, cuts=cuts), measured(*rows)
    assert defined(split.compute()) == close(whole.compute(), rel=1e-9)
    one_shot = functional.reconstruction(rows[0], rows[1])
    for name, value in one_shot.items():
        assert split.compute()[name] == pytest.approx(value.item(), rel=1e-9)
    first, second = split.intervals(num_resamples=20), whole.intervals(num_resamples=20)
    for name, interval in first.items():
        other = second[name]
        assert (interval is None) == (other is None)
        if interval is not None:
            assert interval == pytest.approx(other, rel=1e-6)


@given(batches(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_of_rows_does_not_matter(data, random):
    *rows, _ = data
    order = list(range(len(rows[0])))
    random.shuffle(order)
    shuffled = measured(*(tensor[order] for tensor in rows)).compute()
    assert defined(shuffled) == close(measured(*rows).compute(), rel=1e-9)


@given(batches(), st.sampled_from([10.0, 0.1]))
@settings(deadline=None, max_examples=40)
def test_scale_does_not_matter(data, scale):
    x, x_hat, l0, document, _ = data
    before = measured(x.double(), x_hat.double(), l0, document).compute()
    after = measured(scale * x.double(), scale * x_hat.double(), l0, document).compute()
    for name in SCALE_FREE:
        assert after[name] == pytest.approx(before[name], rel=1e-7)
    mse = before["mse"]
    assert mse is not None
    assert after["mse"] == pytest.approx(scale**2 * mse, rel=1e-9)


@given(batches())
@settings(deadline=None, max_examples=40)
def test_fvu_is_explained_by_its_bounds(data):
    x, x_hat, *_ = data
    assert functional.fvu(x, x).item() == 0
    assert functional.fvu(x, x_hat).item() >= 0
    assert abs(functional.cosine(x, x_hat).item()) <= 1 + 1e-12
    best = functional.relative_bias(x, x_hat).item()
    if best > 0.1:  # dividing by the bias fits best (equation 10 of arXiv 2404.16014)
        error = functional.mse(x, x_hat.double() / best).item()
        for factor in (0.97, 1.03):
            assert error <= functional.mse(x, x_hat.double() / (factor * best)).item() + 1e-12


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(deadline=None, max_examples=30)
def test_firing_does_not_depend_on_batches(seed, sizes):
    f = torch.randn(sum(sizes), 8, generator=torch.Generator().manual_seed(seed)).relu()
    metric = Firing(d_sae=8)
    for part in f.split(sizes):
        metric.update((part != 0).sum(0), len(part))
    frequencies = metric.frequencies
    assert torch.equal(torch.as_tensor(frequencies), (f != 0).double().mean(0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(deadline=None, max_examples=25)
def test_next_token_does_not_depend_on_batches(seed, cut):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 9, (6, 7), generator=generator)
    document = torch.randint(0, 2, (6, 7), generator=generator).cumsum(1)
    document[0] = 0
    logits = {
        name: 5 * torch.randn(6, 7, 9, generator=generator)
        for name in ("clean", "sae", "zero", "mean")
    }
    whole, split, shifted = NextToken(), NextToken(), NextToken()
    whole.update(tokens, document, logits)
    for part in (slice(0, cut), slice(cut, 6)):
        split.update(tokens[part], document[part], {k: v[part] for k, v in logits.items()})
    assert defined(split.compute()) == close(whole.compute(), rel=1e-9)
    # Adding a constant to all logits of a position changes no probability.
    shifted.update(tokens, document, {name: value + 3 for name, value in logits.items()})
    for name, value in whole.compute().items():
        if not name.startswith("ce_recovered"):  # small denominators blow rounding up
            assert shifted.compute()[name] == pytest.approx(value, rel=1e-4, abs=1e-5)
    assert (whole.compute()["kl"] or 0) >= 0


@given(st.integers(0, 2**32 - 1), st.floats(1, 200))
@settings(deadline=None, max_examples=60)
def test_kl_is_finite_and_not_negative(seed, size):
    generator = torch.Generator().manual_seed(seed)
    clean, other = size * (2 * torch.rand(2, 4, 11, generator=generator) - 1)
    kl = functional.kl_divergence(clean, other)
    assert kl.isfinite().all()
    assert (kl >= 0).all()
