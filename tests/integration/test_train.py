"""train.py and evaluate.py as a user runs them, on a tiny random LM and random words."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conf.options import FOLDER
from sae.dictionaries import ARCHITECTURES
from sae.types import SITES

ROOT = Path(__file__).parents[2]
FILES = (
    "config.yaml", "manifest.json", "metrics.csv", "results.json", "report.html",
    "checkpoints/last.ckpt", "sae/config.json", "sae/sae.safetensors",
)  # fmt: skip


def program(*arguments, code=0, **environment):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, shared_cache):
    """One finished run, made by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    result = program("train.py", "debug=tiny", f"run_dir={folder}", SAE_CACHE=shared_cache)
    return folder, result


def test_the_run_folder_holds_what_the_design_lists(run):
    folder, result = run
    for name in FILES:
        assert (folder / name).is_file(), name
    assert (folder / ".hydra").is_dir()
    results = json.loads((folder / "results.json").read_text())
    for group, name in (("core", "fvu"), ("core", "l0"), ("downstream", "ce_recovered_mean")):
        estimate = results[group]["metrics"][name]
        assert estimate.keys() == {"value", "low", "high"}
    fvu = results["core"]["metrics"]["fvu"]
    assert 0 < fvu["low"] <= fvu["value"] <= fvu["high"] < 1
    not_counted = results["core"]["details"]["left_out"]["not_counted"]
    assert results["core"]["tokens"]["vectors"] == 4096 // 32 * 31 - not_counted
    assert 0 < not_counted < 60  # separators
    for word in ("FVU", "L0", "dead", "CE clean", "CE spliced", "perplexity", "vectors/s"):
        assert word in result.stdout
    assert str(folder) in result.stdout.replace("\n", "")


def test_metrics_csv_has_training_validation_and_test(run):
    table = pd.read_csv(run[0] / "metrics.csv")
    assert {"step", "tokens", "train/loss", "train/fvu", "train/l0", "train/dead", "val/fvu",
            "val/ce_recovered_zero", "test/fvu"} <= set(table.columns)  # fmt: skip
    results = json.loads((run[0] / "results.json").read_text())
    final = table["test/fvu"].dropna()
    assert final.tolist() == [results["core"]["metrics"]["fvu"]["value"]]
    assert table["train/fvu"].dropna().iloc[-1] < table["train/fvu"].dropna().iloc[0]
    assert not any("second" in name or "time" in name for name in table.columns)


def test_manifest_says_what_made_the_run(run):
    manifest = json.loads((run[0] / "manifest.json").read_text())
    session = manifest["sessions"][0]
    assert session["status"] == "finished"
    assert session["versions"]["torch"] == torch.__version__
    assert {"harvest", "train", "evaluate"} <= session["stage_seconds"].keys()
    assert session["training"]["vectors_per_second"] > 0


def test_saved_sae_is_in_the_lms_own_units(run):
    import sae

    saved = sae.load(run[0])
    torch.testing.assert_close(saved.W_dec.norm(dim=1), torch.ones(saved.d_sae))
    assert saved.metadata["activations"]["point"] == "resid.1"
    equivalents = saved.metadata["l1_equivalents"]
    assert equivalents["l1_sum_over_d_in"] == pytest.approx(1e-3 * saved.d_in)
    assert equivalents["l1_raw_scale"] == pytest.approx(1e-3 / saved.metadata["scale"])


def test_a_finished_run_says_so_and_ends(run, shared_cache):
    before = {name: (run[0] / name).read_bytes() for name in FILES}
    result = program("train.py", f"run_dir={run[0]}", SAE_CACHE=shared_cache)
    assert "holds a finished run" in result.stdout
    assert {name: (run[0] / name).read_bytes() for name in FILES} == before


@pytest.mark.slow
def test_a_conflicting_override_shows_both_values_and_harms_nothing(run, shared_cache):
    before = {name: (run[0] / name).read_bytes() for name in FILES}
    result = program(
        "train.py", "debug=tiny", f"run_dir={run[0]}", "layer=2", code=1, SAE_CACHE=shared_cache
    )
    assert "layer=1" in result.stderr
    assert "layer=2" in result.stderr
    assert "Traceback" not in result.stderr
    assert {name: (run[0] / name).read_bytes() for name in FILES} == before


class TestInProcess:
    """The plain functions beside the command line."""

    @pytest.fixture(autouse=True)
    def _cache(self, shared_cache, monkeypatch):
        monkeypatch.setenv("SAE_CACHE", shared_cache)

    def train(self, run_dir, *overrides):
        from train import compose, train

        evals = [] if any(o.startswith("eval=") for o in overrides) else ["eval=[core]"]
        own = ["debug=tiny", "~callbacks.downstream", *evals, *overrides]
        return train(compose(own), run_dir)

    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
    def test_every_architecture_learns(self, architecture, tmp_path):
        settings = (FOLDER / "sae" / f"{architecture}.yaml").read_text()
        words = ["k=8"] if "${k}" in settings else []
        words += ["sae.l0_coefficient=1e-3"] if "l0_coefficient" in settings else []
        results = self.train(tmp_path, f"sae={architecture}", *words, "epochs=8")
        if architecture == "positive_tied":  # made for MLP neurons, not for a residual stream
            curve = pd.read_csv(tmp_path / "metrics.csv")["train/fvu"].dropna()
            assert curve.iloc[-1] < curve.iloc[0] / 2
            return
        assert results["core"]["metrics"]["fvu"]["value"] < 0.5
        if architecture == "topk":
            assert results["core"]["metrics"]["l0"]["value"] <= 8

    @pytest.mark.slow
    def test_a_target_l0_is_reached(self, tmp_path):
        given = ["l1=1e-2", "target_l0=6", "epochs=40", "dict_ratio=4"]
        results = self.train(tmp_path, "sae=l1", *given)
        assert results["core"]["metrics"]["l0"]["value"] == pytest.approx(6, rel=0.05)
        steered = results["training"]["l1"]
        assert steered != 1e-2
        assert pd.read_csv(tmp_path / "metrics.csv")["train/l1"].dropna().iloc[-1] > 0

    def test_a_longer_run_continues_a_finished_one(self, tmp_path):
        from train import compose, train

        every_row = (
            "activations.special=keep",
            "activations.max_norm=null",
        )  # 2 * 2 epochs of whole steps
        self.train(tmp_path, "epochs=2", *every_row)
        short = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        train(compose(["epochs=4"]), tmp_path, ["epochs"])
        long = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert long["global_step"] == 2 * short["global_step"]
        table = pd.read_csv(tmp_path / "metrics.csv")
        assert table["step"].is_monotonic_increasing
        assert table["test/fvu"].notna().sum() == 1
        train_steps = table.loc[table["train/loss"].notna(), "step"]
        assert train_steps.tolist() == list(range(4, long["global_step"], 5))
        assert (table["train/lr"].dropna() > 0).all()
        settled = table.loc[table["step"] > short["global_step"], "train/lr"].dropna()
        assert settled.iloc[0] == pytest.approx(1e-3), "the longer run has its own decay"

    @pytest.mark.slow
    def test_a_finished_run_without_checkpoint_is_left_alone(self, tmp_path):
        from sae.errors import ArtifactError
        from train import compose, train

        self.train(tmp_path, "epochs=1")
        (tmp_path / "checkpoints" / "last.ckpt").unlink()
        before = (tmp_path / "results.json").read_bytes()
        assert train(compose(["epochs=1"]), tmp_path, ["epochs"])["core"]
        with pytest.raises(ArtifactError, match="cannot be trained further"):
            train(compose(["epochs=2"]), tmp_path, ["epochs"])
        assert (tmp_path / "results.json").read_bytes() == before

    @pytest.mark.slow
    def test_a_damaged_checkpoint_is_named(self, tmp_path):
        from sae.errors import ArtifactError

        self.train(tmp_path, "epochs=1")
        (tmp_path / "results.json").unlink()
        file = tmp_path / "checkpoints" / "last.ckpt"
        file.write_bytes(file.read_bytes()[:500])
        with pytest.raises(ArtifactError, match=r"last.ckpt is damaged .* Delete it"):
            self.train(tmp_path, "epochs=1")

    @pytest.mark.slow
    def test_without_validation_and_with_downstream_alone(self, tmp_path):
        results = self.train(
            tmp_path, "epochs=1", "trainer.validations=0", "eval=[downstream]",
            "eval.downstream.num_tokens=256",
        )  # fmt: skip
        assert results.keys() == {"downstream", "training"}
        assert "val/fvu" not in pd.read_csv(tmp_path / "metrics.csv").columns

    def test_wrong_evaluation_settings_stop_before_training(self, tmp_path):
        from sae.errors import ConfigError

        with pytest.raises(ConfigError, match="num_tokens"):
            self.train(tmp_path, "eval=[downstream]", "eval.downstream.num_tokens=8")
        assert not (tmp_path / "config.yaml").exists()

    @pytest.mark.slow
    def test_killed_between_training_and_results(self, tmp_path):
        results = self.train(tmp_path)
        (tmp_path / "results.json").unlink()
        table = (tmp_path / "metrics.csv").read_bytes()
        again = self.train(tmp_path)
        assert again["core"]["metrics"] == results["core"]["metrics"]
        assert (tmp_path / "metrics.csv").read_bytes() == table

    @pytest.mark.slow
    def test_own_folder_of_activations(self, tmp_path):
        generator = np.random.default_rng(0)
        (tmp_path / "mine").mkdir()
        for name in ("a", "b"):
            rows = generator.normal(size=(3000, 16)).astype(np.float32)
            np.save(tmp_path / "mine" / f"{name}.npy", rows)
        results = self.train(
            tmp_path / "run", "activations=folder", f"activations.path={tmp_path / 'mine'}"
        )
        assert results["core"]["metrics"]["fvu"]["value"] < 1
        assert "downstream" not in results

    @pytest.mark.slow
    def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(self, tmp_path):
        from sae.errors import DivergedError
        from train import compose, train

        self.train(tmp_path, "epochs=1")
        file = tmp_path / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["state_dict"]["dictionary.b_enc"] += 1e30  # as if it had run away
        torch.save(checkpoint, file)
        good = file.read_bytes()
        with pytest.raises(DivergedError, match=r"diverged at step \d+: .* smaller optimizer"):
            train(compose(["epochs=8"]), tmp_path, ["epochs"])
        assert file.read_bytes() == good
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        assert manifest["sessions"][-1]["status"] == "failed"

    def test_lists_are_for_harvest_only(self, tmp_path):
        from sae.errors import ConfigError

        with pytest.raises(ConfigError, match="train.py -m layer=0,1"):
            self.train(tmp_path, "layer=[0,1]")

    @pytest.mark.slow
    def test_harvest_only_fills_the_cache_with_all_points(self, caplog):
        from sae.activations.from_config import lm_activations, points_of
        from train import compose, harvest

        config = compose(["debug=tiny", "layer=[0,2]", "site=[resid,mlp]", "harvest_only=true"])
        with caplog.at_level(logging.INFO):
            harvest(config)
        points = points_of(config["activations"])
        assert len(points) == 4
        source = lm_activations(config["lm"], config["corpus"], points[0], config["activations"])
        assert set(points) <= set(source.store("train").points())
        assert sum("harvest" in record.message for record in caplog.records) == 3  # one a split

    @pytest.mark.slow
    @pytest.mark.parametrize("site", SITES)
    def test_an_sae_of_every_site_learns_and_is_spliced_in(self, site, tmp_path):
        words = ["layer=1", f"site={site}", "sae=topk", "k=8", "epochs=8"]
        results = self.train(
            tmp_path, *words, "eval=[core,downstream]", "eval.downstream.num_tokens=256"
        )
        metrics = results["downstream"]["metrics"]
        assert results["core"]["metrics"]["fvu"]["value"] < 1
        assert metrics["ce_sae"]["value"] != metrics["ce_clean"]["value"]

    @pytest.mark.slow
    def test_repeated_runs_are_equal_and_seeds_differ(self, tmp_path):
        one, two, other = (
            self.train(tmp_path / name, f"seed={seed}")
            for name, seed in (("one", 0), ("two", 0), ("other", 1))
        )
        assert one["core"]["metrics"] == two["core"]["metrics"]
        assert one["core"]["metrics"]["fvu"] != other["core"]["metrics"]["fvu"]
        assert math.isfinite(one["training"]["vectors_per_second"])
