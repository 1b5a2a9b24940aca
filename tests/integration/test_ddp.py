"""Two processes train the same SAE as one does at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OVERRIDES = [
    "debug=tiny", "epochs=1", "sae=topk", "k=4", "dict_ratio=8", "trainer.validations=2",
    "resample.at_tokens=[30%]", "resample.dead_after_tokens=512", "resample.sample_tokens=512",
    "callbacks.downstream.num_tokens=64", "eval=[core]", "trainer.accelerator=cpu",
]  # fmt: skip


def test_two_processes_equal_one(tmp_path):
    from train import compose, train

    one, two = tmp_path / "one", tmp_path / "two"
    train(compose(OVERRIDES), one)
    command = [sys.executable, "train.py", *OVERRIDES, "trainer=ddp", f"run_dir={two}"]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr

    alone, together = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (one, two)
    )
    assert alone["revived"] > 0, "the test must cross a resampling"
    for name, value in alone.items():
        exact = not value.is_floating_point()
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(together[name], value, **tolerance, msg=lambda m, n=name: n + m)

    tables = [pd.read_csv(folder / "metrics.csv") for folder in (one, two)]
    assert list(tables[0]["step"]) == list(tables[1]["step"])
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, check_like=True)
    assert json.loads((two / "manifest.json").read_text())["sessions"][0]["status"] == "finished"
    # one process wrote, and only into the run folder
    assert {p.name for p in two.iterdir()} - {".hydra", "train.log"} == {
        p.name for p in one.iterdir()
    }
    assert result.stdout.count("tokens trained on") == 1
