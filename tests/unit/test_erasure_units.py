"""Units that the intervals of concept erasure are over, and texts of which no row counts."""

from typing import Any

import numpy as np
import pytest
import torch
from _features import make_sae
from _named import census, worded, worded_source

from sae.activations.counted import Counted, RowRule
from sae.activations.labelled import TextActivations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.erasure import ErasureEval
from sae.features.erased import Ground, Side, on_texts
from sae.features.grounds import biography_ground, labelled_ground
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.classification import draws, draws_within, interval
from sae.tasks.biographies import biographies
from sae.tasks.gender import MOST_VARIANTS, pronoun
from sae.tasks.labelled import LabelledTexts
from sae.tasks.names import single_token_names

__all__ = ["census", "worded", "worded_source"]  # fixtures
BOOTSTRAP = Bootstrap(num_resamples=5)
COMMON: dict[str, Any] = {"max_tokens": 64, "bootstrap": BOOTSTRAP}


@pytest.fixture
def one(worded_source):
    return PlacedSAE(make_sae(worded_source), worded_source, "mine")


def test_biographies_of_one_name_are_drawn_together(one):
    made = biographies(("professor", "nurse"))
    tested = [i for i, train in enumerate(made.train) if not train]
    test = biography_ground(
        one, ("professor", "nurse"), correlation=0.9, seed=0, **COMMON
    ).ground.test
    unit = test.unit
    assert len(tested) == len(unit) == 288
    names = [made.name[i] for i in tested]
    assert all(name in made.texts[i] for i, name in zip(tested, names, strict=True))
    pairs = set(zip(names, unit.tolist(), strict=True))
    assert len(pairs) == len(set(names)) == len(set(unit.tolist())) == 12
    assert sorted(test.strata().tolist()) == [0] * 6 + [1] * 6, "a name is of one gender"


def test_equal_texts_of_a_file_are_drawn_together(one):
    words = ["James went", "James went", "James ran", "James sat", "Mary went", "Mary ran",
             "Mary sat"]  # fmt: skip
    texts = LabelledTexts.of("own", words, [word.split()[0] for word in words])
    for seed in range(6):
        test = labelled_ground(one, texts, seed=seed, **COMMON).ground.test
        assert len(set(test.unit.tolist())) == 2, "one text of each class, however often it stands"
        assert len(test.unit) in (2, 3)


@pytest.mark.parametrize("units", [2, 6])
def test_a_few_units_of_each_class_have_an_interval(units):
    """Draws of all of them together lacked a class now and then, and left no interval."""
    z = torch.arange(2 * units).repeat_interleave(3) % 2
    unit = np.arange(2 * units).repeat(3)
    x = torch.randn(len(z), 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] += 3 * z
    side = Side(x, torch.arange(len(z)), z, None, unit)
    bootstrap = Bootstrap(num_resamples=1000)
    clean = Ground(side, side, by_row=True, bootstrap=bootstrap, seed=0).clean
    for name in ("linear_probe", "mlp_probe"):
        assert interval(clean[name], bootstrap.level) is not None


def test_every_draw_has_as_many_units_of_each_class_as_there_are():
    z, unit = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0]), np.array([0, 1, 2, 3, 4, 4, 5, 5])
    strata = Side(torch.zeros(8, 1), torch.arange(8), z, None, unit).strata()
    assert strata.tolist() == [0, 0, 1, 1, 2, 2], "units with both classes are a stratum"
    weights = draws_within(strata, 1000, 0)
    assert weights.shape == (1001, 6)
    assert (weights[0] == 1).all()
    for stratum in range(3):
        own = weights[:, strata == stratum]
        assert (own.sum(1) == 2).all()
        assert {tuple(row) for row in own.tolist()} == {(1, 1), (2, 0), (0, 2)}
    assert (weights[:, :2] != weights[:, 2:4]).any(), "classes are drawn apart from each other"


def test_a_unit_alone_in_its_class_is_drawn_with_the_others():
    """It would stand in every draw once, as if another one were just like it."""
    np.testing.assert_array_equal(draws_within(np.array([0, 1, 1]), 9, 4), draws(3, 9, 4))


def test_texts_of_which_no_row_counts_are_left_out():
    x = torch.tensor([[1.0], [9.0], [9.0], [3.0]])
    activations = TextActivations(x, torch.tensor([2, 1, 1]))
    counted = Counted(RowRule(), (), {"x": 5.0})
    side = on_texts(activations, counted, [2, 1, 0], [1, 0, 0], ["a", "b", "a"])
    assert side.z.tolist() == [0, 1]
    assert side.x[:, 0].tolist() == [1.0, 3.0]
    assert side.pooled(side.x)[:, 0].tolist() == [3.0, 1.0]
    np.testing.assert_array_equal(side.unit, [0, 0])


def test_no_prompt_stands_twice_among_as_many_as_may_be_asked(worded, census):
    names = single_token_names(worded.tokenizer, 10, test=0.4, seed=0)
    prompts = pronoun(worded.tokenizer, names, train=1, test=MOST_VARIANTS).test.prompts
    assert len({prompt.tokens for prompt in prompts}) == len(prompts)
    more: dict[str, Any] = {"prompts": MOST_VARIANTS + 1}
    with pytest.raises(
        ConfigError, match="prompts=65 must be a whole number of at least 1 and at most 64"
    ):
        ErasureEval(**more)


def test_a_row_of_zeros_has_no_relative_size():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=generator)
    x[0] = 0
    z, each = torch.arange(20) % 2, np.arange(20)
    side = Side(x, torch.arange(20), z, None, each)
    ground = Ground(side, side, by_row=True, bootstrap=BOOTSTRAP, seed=0)
    half = ground.scores(lambda rows: rows / 2)
    assert float(half["relative_size"][0]) == pytest.approx(0.5 * 19 / 20)
    moved = ground.scores(lambda rows: rows + 1)
    slow = np.mean([2 / row.norm().item() for row in x[1:]]) * 19 / 20
    assert float(moved["relative_size"][0]) == pytest.approx(slow, rel=1e-5)
