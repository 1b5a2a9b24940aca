"""Resamples of features, prompts and texts, against slow loops."""

import numpy as np
import pytest

from sae.features.steered_draws import Resamples
from sae.metrics.bootstrap import Bootstrap, multinomial_weights
from sae.metrics.crossed import crossed_means, nested_draws


def test_crossed_means_against_a_slow_loop():
    values = np.random.default_rng(0).normal(size=(3, 4))
    found = crossed_means(values, Bootstrap(num_resamples=5, seed=2))
    rows, columns = (multinomial_weights(n, 5, seed).numpy() for n, seed in ((3, 2), (4, 3)))
    assert found[0] == pytest.approx(values.mean())
    for i in range(5):
        total = sum(rows[i, a] * columns[i, b] * values[a, b] for a in range(3) for b in range(4))
        assert found[i + 1] == pytest.approx(total / 12)


def test_nested_draws_hold_texts_of_drawn_prompts_alone():
    found = nested_draws(3, 4, 2000, seed=1)
    assert found[0].tolist() == np.ones((3, 4)).tolist()
    of_group = found[1:].sum(2) / 4  # how often each group was drawn
    assert set(np.unique(of_group)) <= {0, 1, 2, 3}
    assert of_group.sum(1).tolist() == [3] * 2000
    weights = found[1:] / 12
    values = np.random.default_rng(0).normal(size=(3, 4))
    # variance of a two-stage bootstrap mean: that of group means, and that inside groups
    between = values.mean(1).var() / 3
    inside = values.var(1).mean() / 12
    drawn = (weights * values).sum((1, 2))
    assert drawn.var() == pytest.approx(between + inside, rel=0.1)


def test_resamples_are_those_of_a_slow_loop():
    values = np.random.default_rng(0).random((2, 3, 5))
    values[1, 2, 4] = values[0, 0, 0] = np.nan
    found = Resamples(values.shape, Bootstrap(num_resamples=30, seed=7)).means(values)
    features = np.vstack([[1, 1], multinomial_weights(2, 30, 7).numpy()])
    texts = nested_draws(5, 3, 30, 8)
    for r in range(31):
        total = count = 0.0
        for (i, draw, prompt), value in np.ndenumerate(values):
            if not np.isnan(value):
                weight = features[r, i] * texts[r, prompt, draw]
                total, count = total + weight * value, count + weight
        assert found[r] == pytest.approx(total / count)
    assert found[0] == pytest.approx(np.nanmean(values))
    nothing = Resamples((1, 2, 2), Bootstrap(num_resamples=3)).means(np.full((1, 2, 2), np.nan))
    assert np.isnan(nothing).all()


def test_intervals_hold_the_mean_of_other_texts():
    """Most 95 % intervals hold the truth, in studies of 8 prompts with 4 draws each."""
    random, hits = np.random.default_rng(1), 0
    for seed in range(200):
        values = random.normal(size=(1, 1, 8)) + random.normal(size=(1, 4, 8))
        drawn = Resamples(values.shape, Bootstrap(num_resamples=200, seed=seed)).means(values)
        low, high = np.quantile(drawn[1:], [0.025, 0.975])
        hits += low <= 0 <= high
    assert 175 <= hits <= 198
