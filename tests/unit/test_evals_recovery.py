"""`recovery`, `exact_codes` and FISTA against dictionaries whose numbers are known."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, nnls
from sklearn.linear_model import Lasso

from sae.activations.superposition import SuperpositionActivations
from sae.artifacts.placed import PlacedSAE, source_of
from sae.dictionaries.sae import SAE, SAEConfig
from sae.errors import ConfigError
from sae.evals.exact_codes import ExactCodesEval
from sae.evals.from_config import check_evals, offers_of, run_evals
from sae.evals.recovery import RecoveryEval, partners
from sae.inference import codes_at_l0, duality_gap, fista
from sae.reports.results import result_file
from sae.synthetic import World

WORLD = World(d_in=32, num_features=24, active=3.0, decay=1.0)
"""Fewer features than dimensions, so that a linear encoder can be exact."""
QUICK = {"resamples": 20}


def source(world=WORLD, test_tokens=3000):
    return SuperpositionActivations(world, tokens=100, val_tokens=100, test_tokens=test_tokens)


def sae_of(W_dec, world=WORLD, W_enc=None, **config):
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    W_enc = torch.linalg.pinv(W_dec) if W_enc is None else W_enc
    settings = SAEConfig(**({"architecture": "l1", "activation": "relu"} | config),
                         d_in=world.d_in, d_sae=len(W_dec))  # fmt: skip
    metadata = {"activations": source(world).describe()}
    b_enc = torch.full((len(W_dec),), -1e-4)  # rounding does not fire
    return SAE(W_enc, b_enc, W_dec, torch.zeros(world.d_in), settings, metadata)


def run(sae, world=WORLD, word="recovery", **settings):
    return run_evals(sae, source(world), {word: QUICK | settings})[word]


def values(result):
    return {name: estimate.value for name, estimate in result.metrics.items()}


class TestRecovery:
    def test_a_permuted_copy_of_the_truth_is_all_there_is(self):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        sae = sae_of(WORLD.features[order])
        result = run(sae)
        found = values(result)
        for name in ("mmcs_features", "mmcs_atoms", "matched_cosine", "recovered",
                     "recovered_matched"):  # fmt: skip
            assert found[name] == pytest.approx(1, abs=1e-6), name
        assert found["false_atoms"] == found["silent"] == 0
        assert found["fvu"] < 1e-5
        assert found["l0"] == pytest.approx(3, abs=0.1)
        assert found["absorption"] is None, "there are no children"
        atom = partners(WORLD, sae)
        assert order[atom].tolist() == list(range(24))
        assert json.loads(json.dumps(result.to_json(), allow_nan=False))["eval"] == "recovery"

    def test_a_random_dictionary_has_the_cosines_of_a_simulation(self):
        world = World(d_in=64, num_features=200, active=3.0)
        seeded = torch.Generator().manual_seed(5)
        W_dec, W_enc = (torch.randn(*shape, generator=seeded) for shape in ((300, 64), (64, 300)))
        found = values(run(sae_of(W_dec, world, W_enc=W_enc), world))
        generator = np.random.default_rng(0)
        a, b = generator.normal(size=(200, 64)), generator.normal(size=(300, 64))
        cosines = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T  # fmt: skip # noqa: E501
        rows, columns = linear_sum_assignment(-cosines)
        assert found["mmcs_features"] == pytest.approx(cosines.max(1).mean(), abs=0.01)
        assert found["mmcs_atoms"] == pytest.approx(cosines.max(0).mean(), abs=0.01)
        assert found["matched_cosine"] == pytest.approx(cosines[rows, columns].mean(), abs=0.01)
        assert found["recovered"] == found["recovered_matched"] == 0
        assert found["false_atoms"] == 1
        assert found["fvu"] > 1

    def test_half_of_the_truth_and_as_many_false_atoms(self):
        noise = torch.randn(12, 32, generator=torch.Generator().manual_seed(1))
        sae = sae_of(torch.cat([WORLD.features[:12], noise]))
        result = run(sae)
        found = values(result)
        assert found["recovered"] == found["recovered_matched"] == 0.5
        assert partners(WORLD, sae)[:12].tolist() == list(range(12))
        alone = partners(WORLD, sae_of(WORLD.features[[3, 7]]))
        assert alone.tolist() == [{3: 0, 7: 1}.get(feature, -1) for feature in range(24)]
        assert found["false_atoms"] == 0.5
        low, high = result.metrics["recovered"].low, result.metrics["recovered"].high
        assert 0.2 < low < 0.5 < high < 0.8
        sae.b_enc[12:] = -1e6  # silent atoms are not false, only useless
        found = values(run(sae))
        assert found["false_atoms"] == 0
        assert found["silent"] == 0.5

    def test_one_atom_cannot_be_two_features(self):
        twins = World(d_in=8, num_features=2, active=1.0)
        twins.features[1] = twins.features[0] + 0.1 * twins.features[1]
        twins.features[1] /= twins.features[1].norm()
        found = values(run(sae_of(twins.features[:1], twins), twins))
        assert found["recovered"] == 1
        assert found["recovered_matched"] == 0.5
        assert found["matched_cosine"] == pytest.approx(0.5)

    def test_the_sign_of_an_atom_counts_where_codes_have_none(self):
        flipped = -WORLD.features
        assert values(run(sae_of(flipped)))["recovered"] == 0
        signed = sae_of(flipped, architecture="pca", activation="identity")
        assert values(run(signed))["recovered"] == 1

    def test_rare_features_are_told_apart(self):
        world = World(d_in=64, num_features=40, active=2.0, decay=0.8)
        result = run(sae_of(world.features[:20], world), world)
        buckets = result.details["by_frequency"]
        assert sum(bucket["features"] for bucket in buckets) == 40
        assert buckets[0]["recovered"] == 0
        assert buckets[-1]["recovered"] == 1
        assert all(a["below"] <= b["from"] + 1e-12 for a, b in zip(buckets, buckets[1:], strict=False))  # fmt: skip # noqa: E501
        assert result.details["mean_active"] == pytest.approx(float(world.probabilities.sum()), abs=0.02)  # fmt: skip # noqa: E501


class TestAbsorption:
    world = World(d_in=32, num_features=16, active=4.0, decay=1.0, hierarchy=0.5)

    def test_the_true_dictionary_absorbs_nothing(self):
        result = run(sae_of(self.world.features, self.world), self.world)
        assert values(result)["absorption"] == 0
        counts = result.details["absorption"]
        assert counts["events"] > 1000
        assert counts["failed"] == counts["planted"] == 0

    def test_a_dictionary_made_to_absorb_absorbs_all(self):
        features = self.world.features
        W_enc = torch.linalg.pinv(features)
        # the child's atom holds its parent's direction, and the parent's latent gives way
        absorbing = features.clone()
        absorbing[8:] += 0.7 * features[:8]
        W_enc[:, :8] -= 1e6 * W_enc[:, 8:]
        found = values(run(sae_of(absorbing, self.world, W_enc), self.world))
        assert found["absorption"] == 1

    @pytest.mark.parametrize("planted", [1.0, 0.4])
    def test_what_is_planted_is_measured(self, planted):
        world = World(d_in=32, num_features=16, active=4.0, decay=1.0, hierarchy=0.5,
                      absorption=planted)  # fmt: skip
        result = run(sae_of(world.features, world), world)
        assert values(result)["absorption"] == pytest.approx(planted, abs=0.04)
        counts = result.details["absorption"]
        assert counts["failed"] == pytest.approx(counts["planted"], rel=0.01)

    def test_one_atom_for_both_is_no_absorption(self):
        found = values(run(sae_of(self.world.features[:1], self.world), self.world))
        assert found["absorption"] is None


class TestFista:
    @pytest.mark.parametrize("l1", [0.02, 0.2, 1.0])
    def test_it_solves_the_problem_of_scikit_learn(self, l1):
        generator = torch.Generator().manual_seed(0)
        W_dec = torch.randn(40, 16, generator=generator).double()
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        x = torch.randn(12, 16, generator=generator).double()
        f = fista(x, W_dec, l1, tolerance=1e-12, max_steps=20_000)
        lasso = Lasso(alpha=l1 / 16, positive=True, fit_intercept=False, tol=1e-12, max_iter=10**6)
        for row, code in zip(x.numpy(), f, strict=True):
            expected = lasso.fit(W_dec.numpy().T, row).coef_
            np.testing.assert_allclose(code.numpy(), expected, atol=1e-4)
        assert duality_gap(x, W_dec, f, l1).max() <= 1e-12 * x.square().sum(1).max()

    def test_the_gap_bounds_the_distance_to_the_minimum(self):
        generator = torch.Generator().manual_seed(1)
        W_dec = torch.randn(30, 8, generator=generator).double()
        x = torch.randn(5, 8, generator=generator).double()

        def loss(f):
            return (x - f @ W_dec).square().sum(1) / 2 + 0.3 * f.sum(1)

        best = loss(fista(x, W_dec, 0.3, tolerance=1e-13, max_steps=50_000))
        for steps in (1, 5, 20, 100):
            f = fista(x, W_dec, 0.3, tolerance=0.0, max_steps=steps)
            assert (loss(f) - best <= duality_gap(x, W_dec, f, 0.3) + 1e-9).all()
        assert (duality_gap(x, W_dec, torch.zeros(5, 30).double(), 0.3) > 0).all()

    def test_without_a_penalty_it_is_least_squares_on_what_is_allowed(self):
        generator = torch.Generator().manual_seed(2)
        W_dec = torch.randn(10, 16, generator=generator).double()
        x = torch.randn(6, 16, generator=generator).double()
        allowed = torch.rand(6, 10, generator=generator) < 0.5
        f = fista(x, W_dec, 0.0, allowed=allowed, tolerance=1e-10, max_steps=20_000)
        for row, code, may in zip(x, f, allowed, strict=True):
            expected = nnls(W_dec[may].T.numpy(), row.numpy())[0]
            np.testing.assert_allclose(code[may].numpy(), expected, atol=1e-5)
            assert not code[~may].any()

    def test_the_coefficient_is_found_for_an_l0(self):
        world = World(d_in=32, num_features=64, active=4.0, decay=1.0)
        x = world.sample(400, seed=0)[1]
        f, l1 = codes_at_l0(x, world.features, 2.5)
        assert (f != 0).sum(1).double().mean().item() == pytest.approx(2.5, rel=0.02)
        assert l1 > 0.05
        # no coefficient makes 20 fire where 4 explain all: the smallest one is as near as it gets
        f, l1 = codes_at_l0(x, world.features, 20.0)
        assert (f != 0).sum(1).double().mean() < 8
        assert (x - f @ world.features).square().sum() < 1e-4 * x.square().sum()


class TestExactCodes:
    def test_a_blunt_encoder_loses_to_exact_codes_on_the_same_atoms(self):
        world = World(d_in=24, num_features=48, active=2.0, decay=1.0)
        tied = sae_of(world.features, world, W_enc=world.features.T.clone())
        tied.b_enc.fill_(-0.25)
        result = run(tied, world, "exact_codes", num_tokens=400)
        found = values(result)
        assert found["l0_exact"] < 1.03 * found["l0_encoder"]
        assert found["fvu_refit"] < found["fvu_exact"] < found["fvu_encoder"]
        assert found["code_error_refit"] < 0.5 * found["code_error_encoder"]
        assert result.tokens == {"vectors": 400}
        assert result.details["largest_relative_duality_gap"] < 1e-3

    def test_a_perfect_encoder_has_nothing_to_gain(self):
        found = values(run(sae_of(WORLD.features), word="exact_codes", num_tokens=300))
        assert found["fvu_encoder"] < 1e-5
        assert found["code_error_encoder"] < 1e-5
        assert found["fvu_refit"] < 0.02

    def test_it_needs_no_truth(self):
        from _evals import coarse_sae, make

        context = make(coarse_sae(), folder=None)  # pyright: ignore[reportArgumentType]
        found = values(ExactCodesEval(num_tokens=100).run(context))
        assert found["fvu_refit"] <= found["fvu_exact"] + 1e-6
        assert not any(name.startswith("code_error") for name in found)

    def test_signed_codes_are_refused(self):
        signed = sae_of(WORLD.features, architecture="pca", activation="identity")
        with pytest.raises(ConfigError, match="architecture=pca does not. Leave exact_codes out"):
            run(signed, word="exact_codes")


def test_recovery_is_for_known_features_only():
    from _evals import D_IN, Rows, identity_sae, place

    assert offers_of(source()) == {"truth"}
    check_evals({"core": {}, "recovery": {}}, ctx=32)  # left out
    with pytest.raises(ConfigError, match=r"eval=\[recovery\] needs the true features, known to"):
        check_evals({"recovery": {}}, ctx=None)
    context = place(identity_sae(), None, Rows(torch.zeros(3, D_IN), None))
    with pytest.raises(ConfigError, match="needs the true features"):
        RecoveryEval().run(context)
    for wrong in ({"threshold": 1.0}, {"batch_rows": 0}):
        with pytest.raises(ConfigError):
            RecoveryEval(**wrong)


def test_a_saved_sae_finds_its_world_again(tmp_path):
    sae = sae_of(WORLD.features)
    again = source_of(sae)
    assert again.describe() == source().describe()
    more = source_of(sae, tokens=5000)
    more.prepare(splits=["test"])
    assert more.split("test").num_rows == 5000
    result = run_evals(sae, more, {"recovery": {}})["recovery"]
    assert result_file(tmp_path, result, PlacedSAE(sae, more)).name == "recovery-tokens=5000.json"
    assert result.provenance["world"]["num_features"] == 24
    with pytest.raises(ConfigError, match="lm= and corpus= have no effect"):
        source_of(sae, lm={"kind": "random"})
