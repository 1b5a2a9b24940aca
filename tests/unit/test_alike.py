"""Example embedding against a slow loop, on planted latents and on random sets."""

from dataclasses import replace

import numpy as np
import pytest
from _explanations import bench_of, latent, placed

from sae.explanations import alike as module
from sae.explanations.alike import alike
from sae.explanations.latents import Subject
from sae.explanations.scores import excerpted
from sae.explanations.truth import random_classes


@pytest.fixture(scope="module")
def texts():
    return placed(1, training=True), placed(2)


def of(one, bench, seed=0):
    return excerpted(one, bench, *bench.drawn(one.test, seed))


def test_it_is_the_share_of_triples_in_which_the_positive_is_nearer(texts, monkeypatch):
    monkeypatch.setattr(module, "NEGATIVES", 10_000)  # all of them: nothing is drawn
    bench = bench_of(texts[1])
    excerpts = of(latent("0", *texts, " not", " fish"), bench)
    random = np.random.default_rng(0)
    bench.pooled = {size: random.normal(size=(len(bench.pool), 8)) for size in excerpts}
    excerpts = {
        size: replace(one, vectors=random.normal(size=(len(one.places), 8)))
        for size, one in excerpts.items()
    }
    for size, name in module.ALIKE.items():
        one = excerpts[size]
        negatives = bench.pooled[size][one.silent]
        means = []
        for decile in range(10):
            own = one.vectors[one.decile == decile]
            shares = []
            for i, query in enumerate(own):
                for j, positive in enumerate(own):
                    if i != j:
                        gaps = [query @ positive - query @ negative for negative in negatives]
                        shares += [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]
            means.append(np.mean(shares))
        found = alike(excerpts, bench, 0)
        np.testing.assert_allclose(found.deciles[name], means, atol=1e-12)
        assert found.values[name] == pytest.approx(np.mean(means))


def test_excerpts_of_a_word_are_alike_and_random_ones_are_not(texts):
    bench = bench_of(texts[1], pool=3000)
    one = latent("0", *texts, " zebra")
    assert alike(of(one, bench), bench, 0).values["example_near"] > 0.7
    (random,) = random_classes(Subject("one", [one]), bench.pool).latents
    assert alike(of(random, bench), bench, 0).values["example_near"] == pytest.approx(0.5, abs=0.06)


def test_too_few_excerpts_without_the_latent_have_no_score(texts):
    bench = bench_of(texts[1], pool=100)
    everywhere = latent("0", *texts, *[" not", " fish", " goat", " blue", ",", "\n", " elk"])
    found = alike(of(everywhere, bench), bench, 0)
    assert np.isnan(found.values["example"])
