"""Baselines through train.py and evaluate.py: the same folders, tables and rules as SAEs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from conf.commandline import check_command_line
from sae.errors import ConfigError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAST = ["debug=tiny", "eval=[core]"]


@pytest.fixture
def run(tmp_path):
    from train import compose, train

    def make(*overrides, name="run"):
        train(compose([*FAST, *overrides]), tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize("word", ["pca", "random", "kmeans"])
def test_the_run_folder_is_that_of_a_training(word, run):
    from evaluate import evaluate

    folder = run(f"sae={word}", *([] if word == "kmeans" else ["k=8"]))
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert {"config.yaml", "manifest.json", "sae", "results.json", "report.html"} <= names
    assert "checkpoints" not in names
    results = json.loads((folder / "results.json").read_text())
    assert 0 < results["core"]["metrics"]["fvu"]["value"] < 1
    assert results["core"]["metrics"]["l0"]["value"] <= 8
    (session,) = json.loads((folder / "manifest.json").read_text())["sessions"]
    assert session["status"] == "finished"
    assert {"harvest", "fit", "evaluate"} <= set(session["stage_seconds"])
    again = evaluate(folder, {"core": {}}, device="cpu")["core"]
    assert again.metrics["fvu"].value == results["core"]["metrics"]["fvu"]["value"]
    page = (folder / "report.html").read_text()
    assert f"{word}" in page


def test_full_pca_explains_everything(run):
    folder = run("sae=pca", "k=null", "activations.dtype=float32")
    results = json.loads((folder / "results.json").read_text())
    assert results["core"]["metrics"]["fvu"]["value"] < 1e-9
    assert results["core"]["metrics"]["l0"]["value"] == 32


def test_a_finished_run_stays_and_a_broken_one_is_fitted_again(run, caplog):
    folder = run("sae=rotation", "k=4")
    first = (folder / "results.json").read_bytes()
    with caplog.at_level("INFO"):
        run("sae=rotation", "k=4")
    assert "holds a finished run." in caplog.text
    assert (folder / "results.json").read_bytes() == first
    with pytest.raises(ConfigError, match="k=4, but k=5 was given"):
        run("sae=rotation", "k=5")
    (folder / "results.json").unlink()
    run("sae=rotation", "k=4")
    again = json.loads((folder / "results.json").read_text())
    assert again["core"]["metrics"] == json.loads(first)["core"]["metrics"]
    assert len(json.loads((folder / "manifest.json").read_text())["sessions"]) == 2


def test_a_failed_fit_is_in_the_manifest(run, tmp_path):
    with pytest.raises(ConfigError, match="k=33 must be between 1 and the 32 latents"):
        run("sae=pca", "k=33")
    (session,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["sessions"]
    assert session["status"] == "failed"
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sae=pca l1=1e-3", "l1=0.001 has no effect with sae=pca"),
        ("sae=pca dict_ratio=4", "dict_ratio=4 has no effect with sae=pca"),
        ("sae=kmeans k=4", "k=4 has no effect with sae=kmeans"),
        ("sae=ica target_l0=4", "target_l0=4 has no effect with sae=ica"),
        ("sae=pca epochs=2", "epochs has no effect with sae=pca, which is fitted"),
        ("sae=pca seed=2", "seed has no effect with sae=pca"),
        ("sae=ica resample=none", "resample has no effect with sae=ica"),
        ("sae=ica optimizer.lr=1", "optimizer.lr has no effect with sae=ica"),
        ("sae=ica trainer=ddp", "trainer has no effect"),
        ("sae=topk k=null", "sae.k=None must be|sae.k=null must be"),
        ("sae=pca sae.centre=median", "centre=median must be one of none, mean"),
        ("sae=nmf sae.steps=1000", "steps=1000 must be a whole number"),
    ],
)
def test_what_has_no_effect_is_named(words, message):
    with pytest.raises(ConfigError, match=message):
        check_command_line("train", words.split())


def test_what_has_an_effect_is_taken():
    check_command_line("train", ["sae=ica", "k=null", "seed=3", "trainer.accelerator=cpu"])
    configs = check_command_line("train", ["-m", "sae=pca,topk", "k=4,8", "epochs=1", "seed=0,1"])
    assert len(configs) == 8


def test_one_sweep_holds_saes_and_baselines(tmp_path):
    result = subprocess.run(
        [sys.executable, "train.py", "-m", *FAST, "~callbacks.downstream", "epochs=1",
         "sae=pca,topk", "k=4,8", f"sweep_dir={tmp_path / 'sweep'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["status"].tolist() == ["finished"] * 4
    assert set(zip(table["sae"], table["k"], strict=True)) == {
        (word, k) for word in ("pca", "topk") for k in (4, 8)
    }
    assert table["fvu"].between(0, 1).all()
    assert (result.stdout + result.stderr).count("taken from the cache: ") == 1


def test_the_planner_knows_that_nothing_is_trained():
    from sae.planning import plan_runs
    from train import compose

    plan = plan_runs([compose(["debug=tiny", "sae=pca", "k=8"])])
    stages = {stage.name: stage for stage in plan.stages}
    assert stages["train"].steps == 0
    assert stages["evaluate"].peak is not None
