"""The synthetic world: its facts, its branches, and activations that are drawn from it."""

import json
import threading

import pytest
import torch

from sae.activations.datamodule import ActivationDataModule
from sae.activations.rows import ROWS_PER_CHUNK, Rows
from sae.activations.sources import ActivationSource
from sae.activations.stats import RunningStats
from sae.activations.superposition import SuperpositionActivations
from sae.errors import ConfigError
from sae.synthetic import World


def source(world=None, tokens=6000, val_tokens=500, test_tokens=700):
    world = world or World(d_in=8, num_features=16, active=2.0)
    return SuperpositionActivations(
        world, tokens=tokens, val_tokens=val_tokens, test_tokens=test_tokens
    )


def test_features_are_unit_gaussian_directions():
    features = World().features
    assert features.shape == (512, 256)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(512))
    cosines = (features @ features.T).fill_diagonal_(0)
    assert cosines.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert torch.equal(features, World().features)
    assert not torch.equal(features, World(seed=1).features)


def test_the_uncorrelated_branch_has_the_published_facts():
    codes, x = World().sample(20_000, seed=3)
    active = (codes > 0).sum(1).double()
    expected = sum(0.99**i for i in range(512)) * 5 / 512  # 0.9709
    assert float(World().probabilities.sum()) == pytest.approx(expected)
    assert expected == pytest.approx(0.97, abs=0.005)
    assert active.mean().item() == pytest.approx(expected, abs=0.03)
    assert (active == 0).double().mean().item() == pytest.approx(0.378, abs=0.015)
    assert (x == 0).all(1).double().mean() == (active == 0).double().mean()
    first = (codes[:, :50] > 0).double().mean()
    assert first.item() == pytest.approx(sum(0.99**i for i in range(50)) / 50 * 5 / 512, rel=0.05)
    values = codes[codes > 0]
    assert values.mean().item() == pytest.approx(0.5, abs=0.01)
    assert values.max() <= 1
    torch.testing.assert_close(x, codes @ World().features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_the_correlated_branch_has_five_active_and_no_empty_vector(per):
    world = World(branch="correlated", correlation_per=per)
    codes, _ = world.sample(2000, seed=3)
    active = (codes > 0).sum(1).double()
    assert active.mean().item() == pytest.approx(5.007, abs=0.15)
    assert active.min() >= 1
    # one draw of g for a batch leaves out the half of the features whose Phi(g) is near 0
    seen = (codes > 0).any(0).double().mean().item()
    assert seen < 0.85 if per == "batch" else seen > 0.9
    alone = World(branch="correlated", active=0.01).sample(500, seed=0)[0]
    assert ((alone > 0).sum(1) == 1).double().mean() > 0.95
    assert alone[alone > 0].median() == 1


def test_the_covariance_is_shifted_until_it_is_positive_definite():
    world = World(branch="correlated")
    covariance = world.covariance
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert torch.equal(covariance, covariance.T)
    assert 0 < eigenvalues[0] < 0.02
    assert covariance.diagonal().mean() > 5, "as in the authors' code, it is not 1"


def test_correlated_features_hold_together():
    """Pairs hold together as often as in the authors' recipe, written out again."""
    n = 100_000
    world = World(d_in=4, num_features=6, active=2.0, decay=0.8, branch="correlated")
    holds = (world.sample(n, seed=0)[0] > 0).double()
    torch.manual_seed(0)
    g = torch.distributions.MultivariateNormal(torch.zeros(6).double(), world.covariance)
    p = torch.distributions.Normal(0.0, 1.0).cdf(g.sample(torch.Size([n])))
    p = p * 0.8 ** torch.arange(6)
    p = p * (2 / 6) / p.mean(dim=1, keepdim=True)
    expected = (torch.rand(n, 6) <= p).double()
    empty = (expected.count_nonzero(dim=1) == 0).nonzero()[:, 0]
    expected[empty, torch.randint(0, 6, (len(empty),))] = 1.0
    together = holds.T @ holds / n
    torch.testing.assert_close(together, expected.T @ expected / n, atol=0.006, rtol=0)
    assert len(empty) > 0.05 * n


def test_rescale_zipf_product_and_noise():
    world = World(decay=1.0, zipf=1.0, rescale=True, active=3.0, coefficients="product", noise=0.5)
    codes, x = world.sample(20_000, seed=0)
    assert (codes > 0).sum(1).double().mean().item() == pytest.approx(3, abs=0.05)
    p = world.probabilities
    assert (p[0] / p[9]).item() == pytest.approx(10)
    assert codes[codes > 0].mean().item() == pytest.approx(0.25, abs=0.01)
    assert (x - codes @ world.features).std().item() == pytest.approx(0.5, rel=0.01)


def test_children_need_their_parents_and_absorb_them():
    world = World(d_in=16, num_features=20, active=4.0, decay=1.0, hierarchy=0.5, absorption=0.6)
    drawn = world.draw(20_000, torch.Generator().manual_seed(0))
    assert world.parents.tolist() == [-1] * 10 + list(range(10))
    parent, child = drawn.codes[:, :10] > 0, drawn.codes[:, 10:] > 0
    assert not (child & ~parent).any()
    assert (child.sum() / parent.sum()).item() == pytest.approx(0.3, abs=0.01)
    gone = (drawn.expressed[:, :10] == 0) & parent
    assert not (gone & ~child).any(), "only a child keeps its parent out"
    assert (gone.sum() / child.sum()).item() == pytest.approx(0.6, abs=0.01)
    assert torch.equal(drawn.expressed[:, 10:], drawn.codes[:, 10:])
    torch.testing.assert_close(drawn.x, drawn.expressed @ world.features, rtol=1e-5, atol=1e-6)
    several = World(num_features=8, active=1.0, hierarchy=0.75).parents
    assert several.tolist() == [-1, -1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"absorption": 0.5}, "absorption=0.5 has no effect without children"),
        ({"active": 600.0}, "active=600.0 must be at most 512"),
        ({"active": 6.0, "rescale": True, "zipf": 2.0}, "the probability 3.74. .* smaller active"),
        ({"hierarchy": 1.0}, "hierarchy=1.0 must be"),
        ({"decay": 0.0}, "decay=0.0 must be"),
        ({"child_probability": 0.0}, "child_probability=0.0"),
        ({"d_in": 0}, "d_in=0"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        World(**settings)


def test_every_reading_is_the_same_in_any_thread():
    for branch in ("uncorrelated", "correlated"):
        world = World(d_in=32, num_features=64, branch=branch)
        rows = source(world).split("train")
        assert isinstance(source(world), ActivationSource)
        assert isinstance(rows, Rows)
        first, found = rows.read(1), []
        thread = threading.Thread(target=lambda rows=rows, to=found: to.append(rows.read(1)))
        thread.start()
        thread.join()
        torch.set_num_threads(2)
        again = source(world).split("train").read(1)
        torch.set_num_threads(1)
        assert torch.equal(first, found[0])
        assert torch.equal(first, again)
        assert rows.chunk_bounds(1) == (ROWS_PER_CHUNK, 6000)
        assert torch.equal(first, source(world, tokens=9000).split("train").read(1)[: len(first)])
        assert not torch.equal(first[:500], rows.read(0)[:500])
        assert not torch.equal(first[:500], source(world).split("val").read(0))


def test_statistics_are_measured_once(monkeypatch, cache):
    made = source()
    made.prepare()
    stats = made.split("train").stats
    running = RunningStats(8)
    for i in range(2):
        running.update(made.split("train").read(i))
    assert json.dumps(stats.to_json()) == json.dumps(running.result().to_json())
    assert len(list((cache / "superposition").glob("*.json"))) == 3
    again = source()
    monkeypatch.setattr(type(again.split("train")), "read", lambda *_: pytest.fail("read again"))
    again.prepare()
    assert json.dumps(again.split("train").stats.to_json()) == json.dumps(stats.to_json())


def test_only_the_test_split_is_measured_for_an_evaluation(cache):
    source().prepare(splits=["test"])
    assert len(list((cache / "superposition").glob("*.json"))) == 1


def test_the_key_follows_the_world_and_its_counts():
    keys = {
        made.describe()["key"]
        for made in (source(), source(), source(World()), source(tokens=7000))
    }
    assert len(keys) == 3
    described = json.loads(json.dumps(source().describe()))
    assert World(**described["world"]) == source().world


def test_batches_are_scaled_and_shuffled():
    data = ActivationDataModule(source(), batch_size=1000, normalize="mean_square")
    data.prepare_data()
    x = torch.cat(list(data.train_dataloader()))
    assert x.shape == (6000, 8)
    assert x.square().sum(1).mean().item() == pytest.approx(8, rel=1e-5)


def test_vectors_are_the_units_of_intervals_but_where_they_share_a_draw():
    assert source().split("test").documents(0).tolist() == list(range(700))
    shared = source(World(d_in=8, num_features=16, branch="correlated", correlation_per="batch"))
    assert set(shared.split("train").documents(1).tolist()) == {1}


def test_no_split_is_empty():
    with pytest.raises(ConfigError, match="at least 1 vector"):
        source(val_tokens=0)
