"""The example of docs/guides/bring-your-own.md, as a reader would run it."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "guides" / "bring-your-own.md"


@pytest.fixture(scope="module")
def example():
    """The only code block of the document."""
    (block,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture(scope="module")
def ran(tmp_path_factory, example):
    """Folder in which the example ran, and what it printed: values by folder and evaluation."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "example.py").write_text(example)
    result = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = {}
    for line in result.stdout.splitlines():
        where, name, values = line.split(maxsplit=2)
        printed[where, name] = ast.literal_eval(values)
    return folder, printed


def test_the_example_is_short_and_has_no_hydra(example):
    assert len(example.splitlines()) <= 85
    assert "hydra" not in example
    assert "omegaconf" not in example


def test_what_is_printed_is_what_is_saved(ran):
    folder, printed = ran
    assert set(printed) == {
        (str(Path("runs/lm")), "core"),
        (str(Path("runs/lm")), "downstream"),
        (str(Path("runs/folder")), "core"),  # no tokens, so no downstream
    }
    for (where, name), values in printed.items():
        result = json.loads((folder / where / "evals" / f"{name}.json").read_text())
        assert {word: metric["value"] for word, metric in result["metrics"].items()} == values
    for where in ("runs/lm", "runs/folder"):
        core = printed[str(Path(where)), "core"]
        assert core["fvu"] < 0.3
        assert 0 < core["l0"] < 128
    assert printed[str(Path("runs/lm")), "downstream"]["ce_clean"] > 0


def test_the_dictionary_learned_and_was_watched(ran):
    for where in ("runs/lm", "runs/folder"):
        table = pd.read_csv(ran[0] / where / "metrics.csv")
        loss = table["train/loss_reconstruction"].dropna()
        assert loss.iloc[-1] < loss.iloc[0] / 2
        assert {"train/loss_sparsity", "train/dead", "val/fvu", "val/l0"} <= set(table.columns)
        assert ("val/ce_sae" in table.columns) == (where == "runs/lm")


def test_a_saved_sae_needs_neither_the_class_nor_the_lm(ran):
    import sae
    from sae.dictionaries import ARCHITECTURES

    folder, printed = ran
    assert "tanh" not in ARCHITECTURES
    of_lm = sae.load(folder / "runs" / "lm")
    assert (of_lm.config.architecture, of_lm.config.activation) == ("tanh", "relu")
    assert of_lm.metadata["activations"]["lm"]["kind"] == "own"
    assert of_lm.metadata["activations"]["point"] == "resid.0"

    model = sae.load(folder / "runs" / "folder")
    stored = np.load(folder / "my_activations" / "part-0.npy")
    x = torch.from_numpy(stored[-1000:])  # the last 5 % are the test rows, in the user's units
    error = (x - model(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert error.item() == pytest.approx(printed[str(Path("runs/folder")), "core"]["fvu"], rel=1e-4)


def test_evaluate_finds_the_folder_again(ran, monkeypatch):
    from evaluate import evaluate

    folder, printed = ran
    monkeypatch.chdir(folder)
    result = evaluate(Path("runs/folder"), {"core": {}, "downstream": {}})
    values = {word: metric.value for word, metric in result["core"].metrics.items()}
    assert values == pytest.approx(printed[str(Path("runs/folder")), "core"])
