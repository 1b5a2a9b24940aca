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


def study_of(choose, report):
    return {"choose": {"score": choose}, "report": {"feature": {"score": report}}}


def test_resamples_choose_the_kl_anew_and_are_those_of_a_slow_loop():
    random = np.random.default_rng(0)
    choose, report = random.random((2, 3, 2, 4)), random.random((2, 3, 2, 5))
    studies = {i: study_of(choose[i], report[i]) for i in range(2)}
    drawn = Resamples(studies, Bootstrap(num_resamples=30, seed=7))
    found = drawn.means(report, drawn.at)
    features = np.vstack([[1, 1], multinomial_weights(2, 30, 7).numpy()])
    choosing, reporting = nested_draws(4, 2, 30, 8), nested_draws(5, 2, 30, 9)
    for r in range(31):
        total, chosen = 0.0, []
        for i in range(2):
            at = max(range(3), key=lambda t, i=i, r=r: (choosing[r].T * choose[i, t]).sum())
            total += features[r, i] * (reporting[r].T * report[i, at]).sum() / 10
            chosen.append(at)
        assert drawn.at[r].tolist() == chosen
        assert found[r] == pytest.approx(total / 2)
    assert found[0] == pytest.approx(np.mean([report[i, drawn.at[0, i]] for i in range(2)]))
    assert len({tuple(one) for one in drawn.at.tolist()}) > 1
