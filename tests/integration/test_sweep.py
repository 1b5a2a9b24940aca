"""Multiruns: one harvest, one table, failures that do not stop the others, continuing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
FAST = ["debug=tiny", "epochs=1", "eval=[core]", "~callbacks.downstream"]


def sweep(folder, *overrides, code=0, cache=None):
    command = [sys.executable, "train.py", "-m", *FAST, *overrides, f"sweep_dir={folder}"]
    environment = os.environ | ({"SAE_CACHE": str(cache)} if cache else {})
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=environment
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("launcher", [[], ["launcher=joblib"]])
def test_one_harvest_one_table_and_failed_jobs_do_not_stop_the_others(launcher, tmp_path):
    # layer 9 does not exist: harvesting it would fail the whole sweep, so the bad value is one
    # that only training can find out
    output = sweep(
        tmp_path / "sweep", "layer=0,2", "trainer.batch_size=256,99999999", *launcher, code=1
    )
    assert output.count("harvest resid.0, resid.2 (train)") == 1
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["status"].tolist().count("finished") == 2
    assert table["status"].tolist().count("failed") == 2
    assert set(table["layer"]) == {0, 2}
    assert table.loc[table["status"] == "finished", "fvu"].between(0, 1).all()
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 1000
    assert "batch_size=99999999 is more than" in output


def test_a_killed_sweep_continues(tmp_path):
    folder = tmp_path / "sweep"
    sweep(folder, "l1=1e-3,1e-2")
    first = (folder / "0" / "results.json").read_bytes()
    (folder / "1" / "results.json").unlink()  # as if killed before the second job's end
    (folder / "1" / "checkpoints" / "last.ckpt").unlink()
    output = sweep(folder, "l1=1e-3,1e-2")
    assert "holds a finished run" in output
    assert (folder / "0" / "results.json").read_bytes() == first
    assert json.loads((folder / "1" / "results.json").read_text())["core"]
    assert pd.read_csv(folder / "sweep.csv")["status"].tolist() == ["finished", "finished"]


def test_a_missing_layer_is_one_clear_error(tmp_path):
    output = sweep(tmp_path / "sweep", "layer=0,9", code=1)
    assert "SiteError" in output
    assert "Traceback" not in output
