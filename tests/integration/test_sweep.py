"""Multiruns: one harvest, one table, failures that do not stop the others, continuing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAST = ["debug=tiny", "epochs=1", "eval=[core]", "~callbacks.downstream"]


def sweep(folder, *overrides, code=0, **environment):
    command = [sys.executable, "train.py", "-m", *FAST, *overrides, f"sweep_dir={folder}"]
    environment = os.environ | environment
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("launcher", [[], ["launcher=joblib"]])
def test_one_harvest_one_table_and_failed_jobs_do_not_stop_the_others(launcher, tmp_path):
    output = sweep(
        tmp_path / "sweep",
        "layer=0,2",
        "trainer.batch_size=256,99999",
        "optimizer.lr=3e-3",
        *launcher,
        code=1,
    )
    assert output.count("harvest resid.0, resid.2 (train)") == 1
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["status"].tolist().count("finished") == 2
    assert table["status"].tolist().count("failed") == 2
    assert set(table["layer"]) == {0, 2}
    assert table.loc[table["status"] == "finished", "fvu"].between(0, 1).all()
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 1000
    assert "batch_size=99999 is more than" in output


def test_a_killed_sweep_continues_and_another_is_refused(tmp_path):
    folder = tmp_path / "sweep"
    sweep(folder, "l1=1e-3,1e-2")
    first = (folder / "0" / "results.json").read_bytes()
    (folder / "1" / "results.json").unlink()  # as if killed before the second job's end
    (folder / "1" / "checkpoints" / "last.ckpt").unlink()
    output = sweep(folder, "l1=1e-3,1e-2,1e-1")  # a longer sweep begins with the same jobs
    assert "holds a finished run" in output
    assert (folder / "0" / "results.json").read_bytes() == first
    assert json.loads((folder / "1" / "results.json").read_text())["core"]
    table = pd.read_csv(folder / "sweep.csv")
    assert table["status"].tolist() == ["finished"] * 3
    assert table["l1"].tolist() == [1e-3, 1e-2, 1e-1]

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    output = sweep(folder, "l1=1e-3,3e-1", code=1)
    assert "1 holds a run with l1=0.01, but l1=0.3 was given" in output
    assert "Traceback" not in output
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_cannot_be_had_fails_its_own_jobs_only(tmp_path):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    output = sweep(tmp_path / "sweep", "lm=gpt2,tiny-llama", "layer=0,9,2", code=1, **nowhere)
    assert "Traceback" not in output
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["status"].tolist() == ["failed"] * 3 + ["finished", "failed", "finished"]
    assert table["error"][:3].str.startswith("SourceError").all()
    assert table["error"][4].startswith("SiteError")
    assert output.count("harvest resid.0, resid.2 (train)") == 1


def test_optuna_searches_with_jobs_of_submitit_and_keeps_the_front(tmp_path):
    folder = tmp_path / "sweep"
    output = sweep(
        folder, "sweeper=optuna", "l1=tag(log,interval(1e-4,1e-1))", "launcher=submitit_local",
        "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2",
    )  # fmt: skip
    table, front = (pd.read_csv(folder / f"{name}.csv") for name in ("sweep", "front"))
    assert table["status"].tolist() == ["finished"] * 2
    assert table["l1"].between(1e-4, 1e-1).all()
    assert table["l1"].nunique() == 2
    told = yaml.safe_load((folder / "optimization_results.yaml").read_text())["solutions"]
    expected = sorted([found["params"]["l1"], *found["values"]] for found in told)
    assert front[["l1", "fvu", "l0"]].sort_values("l1").to_numpy() == pytest.approx(
        np.array(expected)
    )
    assert list((folder / ".submitit").glob("*/*_result.pkl"))
    assert "Traceback" not in output


def test_harvest_only_is_one_pass_and_no_table(tmp_path):
    output = sweep(tmp_path / "sweep", "layer=0,2", "harvest_only=true")
    assert output.count("harvest resid.0, resid.2 (train)") == 1
    assert output.count("harvest ") == 3  # one a split
    assert "Table and plot" not in output
    assert not (tmp_path / "sweep" / "sweep.csv").exists()
