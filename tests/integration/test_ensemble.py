"""SAEs that train from one read equal those that train alone, whatever happens to them."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAST = ["debug=tiny", "epochs=3", "eval=[core]", "trainer.validations=2"]
# All that may differ between members: architecture, width, sparsity, seed; each with resampling.
MEMBERS = {
    "topk": ["sae=topk", "k=4", "dict_ratio=8", "seed=0"],
    "wider": ["sae=topk", "k=2", "dict_ratio=16", "seed=0"],
    "tied": ["l1=1e-2", "seed=3"],
}
RESAMPLE = ["resample.at_tokens=[30%,60%]", "resample.dead_after_tokens=256",
            "resample.sample_tokens=512", "trainer.checkpoint_every_steps=7"]  # fmt: skip
FILES = ("metrics.csv", "sae/sae.safetensors")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _cache(shared_cache, monkeypatch):
    monkeypatch.setenv("SAE_CACHE", shared_cache)


def member(folder, name):
    from train import compose, train

    config = compose([*FAST, *RESAMPLE, *MEMBERS[name]])
    return partial(train, config, folder / name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, shared_cache):
    """Each member trained by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_CACHE", shared_cache)
        folder = tmp_path_factory.mktemp("alone")
        for name in MEMBERS:
            member(folder, name)()
    return folder


@pytest.fixture
def reads(monkeypatch):
    """Steps at which the shards were opened for training, and a step to interrupt at."""
    from sae.activations import datamodule

    made, original = {"starts": [], "interrupt_at": None}, datamodule.shuffled_batches

    def watched(*arguments, **options):
        made["starts"].append(options["start_step"])
        for step, batch in enumerate(original(*arguments, **options), options["start_step"]):
            if step == made["interrupt_at"]:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(datamodule, "shuffled_batches", watched)
    return made


def state(folder, name):
    file = folder / name / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True)


def assert_equal(one, other):
    for name in MEMBERS:
        for file in FILES:
            same = (one / name / file).read_bytes() == (other / name / file).read_bytes()
            assert same, f"{name}/{file} differs"
        a, b = state(one, name), state(other, name)
        assert a["global_step"] == b["global_step"]
        for part in ("state_dict", "optimizer_states"):
            torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
        results = [json.loads((f / name / "results.json").read_text()) for f in (one, other)]
        assert results[0]["core"]["metrics"] == results[1]["core"]["metrics"]


def test_members_equal_separate_runs_bit_for_bit(alone, reads, tmp_path):
    from sae.lockstep import lockstep

    results = lockstep({name: member(tmp_path, name) for name in MEMBERS})
    assert reads["starts"] == [0], "one reader for all members"
    assert results["topk"]["training"]["revived"] > 0, "the test must cross a resampling"
    assert_equal(alone, tmp_path)
    assert len({results[name]["core"]["metrics"]["fvu"]["value"] for name in MEMBERS}) == 3


def test_interrupted_members_go_on_from_where_each_was(alone, reads, tmp_path):
    from sae.lockstep import lockstep

    members = {name: member(tmp_path, name) for name in MEMBERS}
    reads["interrupt_at"] = 50
    with pytest.raises(KeyboardInterrupt):
        lockstep(members)
    assert [state(tmp_path, name)["global_step"] for name in MEMBERS] == [50, 50, 50]
    manifest = json.loads((tmp_path / "tied" / "manifest.json").read_text())
    assert manifest["sessions"][-1]["status"] == "interrupted"

    for name in ("last", "previous"):  # as if killed before the first
        (tmp_path / "wider" / "checkpoints" / f"{name}.ckpt").unlink()
    reads["interrupt_at"] = None
    lockstep({"tied": members.pop("tied")})  # one is finished alone
    lockstep(members | {"tied": member(tmp_path, "tied")})
    assert reads["starts"] == [0, 50, 0]
    assert_equal(alone, tmp_path)


def test_a_list_on_the_command_line(tmp_path):
    """One of the two diverges; the other goes on, and the exit status tells."""
    folder = tmp_path / "both"
    command = [
        sys.executable, "train.py", *FAST, "~callbacks.downstream", "l1=[1e-3,1e38]",
        f"run_dir={folder}",
    ]  # fmt: skip
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=dict(os.environ)
    )
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    assert "2 SAEs from one read: #0 l1=0.001, #1 l1=1e+38" in output
    table = pd.read_csv(folder / "sweep.csv")
    assert table["status"].tolist() == ["finished", "failed"]
    assert table["l1"].tolist() == [1e-3, 1e38]
    assert table["error"][1].startswith("DivergedError")
    assert (folder / "1" / "error.txt").exists()
    assert (folder / "sweep.png").exists()
    assert "#0 l1=0.001: train: step" in (folder / "train.log").read_text()
    assert (folder / "0" / ".hydra" / "overrides.yaml").exists()
