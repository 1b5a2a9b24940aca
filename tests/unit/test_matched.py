"""Means at equal firing counts, and their intervals over documents and seeds."""

import numpy as np
import pytest
from scipy import stats

from sae.metrics.bootstrap import Bootstrap
from sae.metrics.matched import (
    Mean,
    Sample,
    density_bins,
    matched_means,
    mean_of,
    plain_mean,
    seed_interval,
)


def sample(density, value, groups=4, seed=0):
    influence = np.random.default_rng(seed).standard_normal((len(value), groups))
    influence -= influence.mean(1, keepdims=True)
    return Sample(np.array(density), np.array(value, float), influence)


def test_bins_of_the_sae_weigh_the_control():
    sae = sample([0.1, 0.1, 0.1, 0.001], [1, 2, 3, 6])
    control = sample([0.1, 0.001, 0.001, 0.5], [10, 20, 40, 1000])
    found = matched_means([sae], [control])
    assert found is not None
    assert found.first[0].value == pytest.approx(3.0)
    assert found.second[0].value == pytest.approx(0.75 * 10 + 0.25 * 30)
    weights = np.array([0.75, 0.125, 0.125, 0])
    np.testing.assert_allclose(found.second[0].influence, weights @ control.influence)
    assert (found.coverage, found.left_out) == (1.0, [])


def test_bins_that_one_lacks_are_left_out_for_both():
    sae = sample([0.1, 0.02, 0.02, 0.001], [1, 2, 3, np.nan])
    found = matched_means([sae], [sample([0.1, 0.001], [5, 6])])
    assert found is not None
    assert (found.first[0].value, found.second[0].value) == (1.0, 5.0)
    assert found.coverage == pytest.approx(1 / 3), "undefined numbers count for nothing"
    assert found.left_out == pytest.approx([0.017782794])
    assert matched_means([sae], [sample([0.9], [1])]) is None


def test_intervals_are_those_of_document_groups():
    """A mean of one number a group: the interval is that of the usual bootstrap of the mean."""
    numbers = np.random.default_rng(1).standard_normal(200)
    mean = Mean(numbers.mean(), numbers - numbers.mean())
    low, high = mean.interval(Bootstrap(num_resamples=4000))
    half = stats.norm.ppf(0.975) * numbers.std() / 200**0.5
    assert (low, high) == pytest.approx((mean.value - half, mean.value + half), abs=0.1 * half)
    assert (mean - mean).interval(Bootstrap()) == pytest.approx((0, 0), abs=1e-12), "paired"
    assert Mean(1.0, np.zeros(1)).interval(Bootstrap()) is None


def test_plain_means_leave_undefined_latents_out():
    one = sample([0.1, 0.1, 0.1], [1, np.nan, 3])
    assert plain_mean(one).value == 2.0
    np.testing.assert_allclose(plain_mean(one).influence, one.influence[[0, 2]].mean(0))
    assert plain_mean(sample([0.1], [np.nan])) is None
    both = mean_of([Mean(1.0, np.array([1.0, -1.0])), Mean(3.0, np.array([0.0, 0.0]))])
    assert both.value == 2.0
    assert both.influence.tolist() == [0.5, -0.5]


def test_intervals_over_seeds_are_students_and_welchs():
    a, b = [1.0, 2.0, 4.0], [0.0, 0.5]
    assert seed_interval(a) == pytest.approx(
        stats.t.interval(0.95, 2, np.mean(a), stats.sem(a)), rel=1e-9
    )
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert seed_interval(a, b) == pytest.approx((expected.low, expected.high), rel=1e-9)
    low, high = seed_interval(a, [1.0])
    assert (low + high) / 2 == pytest.approx(np.mean(a) - 1)
    assert seed_interval([1.0]) is None
    assert seed_interval([1.0, 1.0]) == (1.0, 1.0)


def test_densities_of_a_decade_fill_four_bins():
    assert len(set(density_bins(np.geomspace(0.0101, 0.0999, 50)).tolist())) == 4
