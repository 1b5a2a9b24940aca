"""What `core` says of codes, atoms and other libraries' definitions, against slow references."""

from typing import Any

import numpy as np
import pytest
import torch
from _evals import CONTEXTS, CTX, D_IN, POINT, Rows, coarse_sae, make, place, values

from sae import functional
from sae.dictionaries.sae import SAE, SAEConfig
from sae.evals import CoreEval
from sae.metrics import (
    OTHER_DEFINITIONS,
    FeatureActivations,
    Firing,
    OtherDefinitions,
    Reconstruction,
)


def signed_sae(activation: str, k: int | None = None) -> SAE:
    """Atoms that are no basis, codes of both signs."""
    generator = torch.Generator().manual_seed(3)
    atoms = torch.nn.functional.normalize(torch.randn(9, D_IN, generator=generator), dim=1)
    config = SAEConfig("baseline", activation, D_IN, 9, k=k)
    return SAE(atoms.T.contiguous(), torch.zeros(9), atoms, torch.zeros(D_IN), config)


@pytest.mark.parametrize(("activation", "k"), [("identity", None), ("abs_topk", 3)])
def test_signed_codes(tmp_path, activation, k):
    context = make(signed_sae(activation, k), tmp_path)
    result = CoreEval(batch_rows=50, legacy=("all",)).run(context)
    got = values(result)
    f = context.sae.encode(context.rows("test").x).double().numpy()  # pyright: ignore
    assert (f < 0).any()
    assert got["l0"] == (9 if k is None else k)
    assert got["l1"] == pytest.approx(np.abs(f).sum(1).mean(), rel=1e-6)
    assert got["l1_saebench"] == pytest.approx(f.sum(1).mean(), rel=1e-5)
    assert got["l0_positive"] == pytest.approx((f > 0).sum(1).mean(), rel=1e-9)
    assert (f > 0).sum() < (f != 0).sum()
    often = (f != 0).sum(0) > 10
    assert got["fired_over_10"] == often.mean()
    moments = {
        "mean": f.mean(0), "std": f.std(0), "skew": (f**3).mean(0) / f.std(0) ** 3,
        "kurtosis": (f**4).mean(0) / f.var(0) ** 2,
    }  # fmt: skip
    listed = result.details["latents"]
    assert listed["firings"] == (f != 0).sum(0).tolist()
    for name, expected in moments.items():
        assert listed[name] == pytest.approx(expected.tolist(), rel=1e-6)
        ordered = np.sort(expected[often])
        assert got[f"activation_{name}"] == pytest.approx(
            ordered[(len(ordered) - 1) // 2], rel=1e-6
        )


def test_moments_stream_in_float64_and_in_any_split():
    """A large mean cancels in float32; batches and blocks change nothing."""
    generator = torch.Generator().manual_seed(0)
    f = (1000 + torch.randn(3000, 3, generator=generator)) * torch.tensor([1.0, -1.0, 0.0])
    f[:, 2] = torch.randn(3000, generator=generator).relu()
    metric = FeatureActivations(3)
    for part in f.split(700):
        metric.update(part)
    exact = f.double()
    got = metric.compute()
    assert got["std"].tolist() == pytest.approx(exact.std(0, correction=0).tolist(), rel=1e-6)
    skew = exact.pow(3).mean(0) / exact.std(0, correction=0).pow(3)
    assert got["skew"].tolist() == pytest.approx(skew.tolist(), rel=1e-5)
    assert not metric.contexts.any()
    constant = FeatureActivations(1)
    constant.update(torch.full((20, 1), 3.0))
    assert constant.compute()["kurtosis"].isnan().all()


@pytest.mark.parametrize("cut", [1, 4, 5, 7, 40])
def test_contexts_may_straddle_batches(cut, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    f = (torch.rand(40, 6, generator=generator) < 0.15).float()
    context = torch.arange(40) // 5
    metric = FeatureActivations(6)
    for part, where in zip(f.split(cut), context.split(cut), strict=True):
        metric.update(part, where)
    expected = (f.view(8, 5, 6).sum(1) > 0).sum(0)
    assert metric.contexts.tolist() == expected.tolist()
    torch.testing.assert_close(metric.consistency(), f.double().sum(0) / expected)


def test_consistent_activation_needs_whole_contexts(tmp_path):
    context = make(coarse_sae(), tmp_path)
    f = context.sae.encode(context.rows("test").x) != 0  # pyright: ignore[reportAttributeAccessIssue]
    contexts = f.view(CONTEXTS, CTX - 1, -1).any(1).sum(0)
    expected = (f.sum(0) / contexts)[contexts > 0].double().mean().item()
    assert values(CoreEval(batch_rows=11).run(context))["consistent_activation"] == pytest.approx(
        expected
    )
    without = place(context.sae, POINT, context.rows("test"))
    assert "consistent_activation" not in values(CoreEval().run(without))


def test_rare_and_firing_shares():
    metric = Firing(d_sae=5)
    metric.update(torch.tensor([0, 1, 2, 3_000, 15_000]), num_rows=20_000)
    found = metric.compute()
    assert (found["silent"], found["rare"], found["dense"]) == (0.2, 0.2, 0.4)  # 2 = exactly 1e-4
    assert metric.shares_over(0.01) == (0.4, pytest.approx(18_000 / 18_003))
    few = Firing(d_sae=2)
    few.update(torch.tensor([0, 1]), num_rows=10_000)  # one firing is 1e-4 already
    assert few.compute()["rare"] is None
    none = Firing(d_sae=2)
    none.update(torch.tensor([0, 0]), num_rows=5)
    assert none.shares_over(0.01) == (0, None)


@pytest.mark.parametrize("block_entries", [1, 30, 10**6])
def test_max_cosines_in_blocks(block_entries):
    vectors = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
    vectors[3] = -vectors[7]
    vectors[4] = 0
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    cosines.fill_diagonal_(-2)
    got = functional.max_cosines(vectors, block_entries)
    torch.testing.assert_close(got, cosines.amax(1))
    assert functional.max_cosines(torch.ones(1, 3)).isnan().all()


def test_overlaps_of_a_dictionary(tmp_path):
    sae = signed_sae("identity")
    got = values(CoreEval().run(make(sae, tmp_path)))
    assert got["decoder_max_cosine"] == pytest.approx(got["encoder_max_cosine"])
    sae = coarse_sae()  # an orthogonal basis and its negative
    assert values(CoreEval().run(make(sae, tmp_path)))["decoder_max_cosine"] == 0


def full(x, x_hat) -> Reconstruction:
    metric = Reconstruction(x.shape[1], full=True)
    metric.update(x, x_hat, torch.zeros(len(x)), None, torch.zeros(len(x)))
    return metric


def test_constant_dimensions_are_left_out_and_counted():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 7.3
    x_hat = x + 0.1
    metric = full(x, x_hat)
    a = x[:, [0, 2]].double().numpy()
    expected = (0.01 * 50 / ((a - a.mean(0)) ** 2).sum(0)).mean()
    assert metric.compute()["fvu_per_dim"] == pytest.approx(expected, rel=1e-5)
    assert metric.constant_dimensions() == 1
    nothing_varies = full(torch.ones(4, 2), torch.zeros(4, 2))
    assert nothing_varies.compute()["fvu_per_dim"] is None
    assert nothing_varies.constant_dimensions() == 2


def test_mean_predictor_and_offset():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 9])
    mean = x.double().mean(0).expand_as(x)
    assert full(x.double(), mean).compute()["fvu_per_dim"] == pytest.approx(1, rel=1e-9)
    assert full(x, x).compute()["fvu_per_dim"] == 0
    offset = full(x, x + 1).compute()["fvu_per_dim"]
    assert offset is not None
    assert offset > 0.2


def test_scale_of_the_lm_does_not_matter(tmp_path):
    """Activations and SAE in a unit ten times smaller: only what has a unit changes."""
    context = make(coarse_sae(), tmp_path)
    sae = context.sae
    scaled = SAE(sae.W_enc, 10 * sae.b_enc, sae.W_dec, 10 * sae.b_dec, sae.config)
    rows = Rows(10 * context.rows("test").x, context.rows("test").document)  # pyright: ignore
    before = values(CoreEval().run(context))
    after = values(CoreEval().run(place(scaled, POINT, rows, context.store("test"))))
    units = dict.fromkeys(("l1", "norm", "norm_hat", "activation_mean", "activation_std"), 10)
    for name, unit in {"mse": 100, **units}.items():
        expected = before.pop(name)
        assert expected is not None
        assert after.pop(name) == pytest.approx(unit * expected, rel=1e-5)
    assert after.pop("rare") is before.pop("rare")
    assert after == pytest.approx(before, rel=1e-5)


# Other libraries' definitions, on data of large mean (d 64, true EV about 0.75).


def toy(rows: int = 4096):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 64)) + 2.0 * rng.normal(size=64)
    return x, rng


def measured(x: np.ndarray, x_hat: np.ndarray, batch: int = 512) -> dict[str, Any]:
    metric = OtherDefinitions(2)
    whole = full(torch.from_numpy(x), torch.from_numpy(x_hat)).compute()
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        a, b = torch.from_numpy(x[part]), torch.from_numpy(x_hat[part])
        metric.update(a, b, torch.zeros(len(a), 2))
    fvu = whole["fvu"]
    return metric.compute() | {"ev": None if fvu is None else 1 - fvu}


def rederived(x: np.ndarray, x_hat: np.ndarray, batch: int = 512) -> dict[str, float]:
    """From the formulas, one batch after the other."""
    error = ((x - x_hat) ** 2).sum(1)
    legacy, variance = [], []
    for start in range(0, len(x), batch):
        a, e = x[start : start + batch], (x - x_hat)[start : start + batch]
        legacy += [
            1 - (r**2).sum() / ((p - a.mean(0)) ** 2).sum() for p, r in zip(a, e, strict=True)
        ]
        variance.append(1 - e.var(0, ddof=1).sum() / a.var(0, ddof=1).sum())
    energy = (x**2).sum(1).mean()
    return {
        "ev": 1 - error.sum() / ((x - x.mean(0)) ** 2).sum(),
        "ev_saebench_legacy": float(np.mean(legacy)),
        "ev_saebench_0_6": 1 - error.mean() / (energy - (x**2).mean(0).mean() ** 2),
        "ev_dictionary_learning": float(np.mean(variance)),
        "mse_sae_lens": error.mean(),
        "mse_saebench": error.mean() / batch,
        "nmse_openai": (error / (x**2).sum(1)).mean(),
    }


def agree(got, expected):
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_noise_of_half_a_deviation():
    x, rng = toy()
    x_hat = x + 0.5 * rng.normal(size=x.shape)
    got = measured(x, x_hat)
    agree(got, rederived(x, x_hat))
    assert got["ev"] == pytest.approx(0.751, abs=0.005)
    assert got["ev_saebench_legacy"] == pytest.approx(0.743, abs=0.005)
    assert got["ev_dictionary_learning"] == pytest.approx(0.751, abs=0.005)
    assert got["ev_saebench_0_6"] > 0.9  # looks far better than it is


def test_the_mean_as_reconstruction():
    x, _ = toy()
    x_hat = np.tile(x.mean(0), (len(x), 1))
    got = measured(x, x_hat)
    agree(got, rederived(x, x_hat))
    assert got["ev"] == pytest.approx(0, abs=1e-9)
    assert got["ev_dictionary_learning"] == pytest.approx(0, abs=1e-9)
    assert got["ev_saebench_0_6"] > 0.7


def test_a_constant_offset_is_punished_by_ours_only():
    x, _ = toy()
    got = measured(x, x + 0.8)
    agree(got, rederived(x, x + 0.8))
    assert got["ev"] == pytest.approx(0.361, abs=0.02)
    assert got["ev_dictionary_learning"] == pytest.approx(1)


def test_the_unit_changes_saebench_0_6_only():
    x, rng = toy()
    x_hat = x + 0.5 * rng.normal(size=x.shape)
    before, after = measured(x, x_hat), measured(10 * x, 10 * x_hat)
    agree(after, rederived(10 * x, 10 * x_hat))
    for name in ("ev", "ev_saebench_legacy", "ev_dictionary_learning", "nmse_openai"):
        assert after[name] == pytest.approx(before[name], rel=1e-9)
    six = after["ev_saebench_0_6"]
    assert six is not None
    assert six > 1  # impossible for explained variance


def test_rows_of_huge_norm():
    x, rng = toy()
    x_hat = x + 0.5 * rng.normal(size=x.shape)
    x[::128] *= 50
    x_hat[::128] = x[::128] + 0.5 * rng.normal(size=x[::128].shape)
    got = measured(x, x_hat)
    agree(got, rederived(x, x_hat))
    ev, legacy = got["ev"], got["ev_saebench_legacy"]
    assert ev is not None
    assert legacy is not None
    assert ev > 0.99  # the sinks decide the pooled value: position 0 is left out by default
    assert legacy < ev


def test_batches_change_what_depends_on_them_only():
    x, rng = toy()
    x_hat = x + 0.5 * rng.normal(size=x.shape)
    large, small = measured(x, x_hat, 1024), measured(x, x_hat, 128)
    assert small["mse_saebench"] == pytest.approx(8 * (large["mse_saebench"] or 0))
    for name in ("ev", "ev_saebench_0_6", "mse_sae_lens", "nmse_openai"):
        assert small[name] == pytest.approx(large[name], rel=1e-9)


def test_other_definitions_come_on_request(tmp_path):
    context = make(coarse_sae(), tmp_path)
    every, none = values(CoreEval(legacy=("all",)).run(context)), values(CoreEval().run(context))
    assert set(every) - set(none) == set(OTHER_DEFINITIONS)
    assert len(OTHER_DEFINITIONS) == 9
    two = ("nmse_openai", "ev_saebench_0_6")
    some = values(CoreEval(legacy=two).run(context))
    assert {name: some[name] for name in set(some) - set(none)} == {n: every[n] for n in two}
    metric = OtherDefinitions(2)
    metric.update(torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([[1.0, 0.0], [-1.0, 2.0]]))
    found = metric.compute()
    assert found["alive_dictionary_learning"] == 0.5  # the first one's signs cancel
    assert found["ev_dictionary_learning"] is None  # nothing varies
