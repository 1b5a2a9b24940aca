"""A run killed or told to stop at any step, and continued, equals a run that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Resampling at several times, validation, logging and checkpoints at different rhythms.
OVERRIDES = [
    "debug=tiny", "epochs=12", "sae=topk", "k=4", "dict_ratio=8", "trainer.validations=5",
    "resample.at_tokens=[15%,30%,45%,60%]", "resample.dead_after_tokens=256",
    "resample.sample_tokens=512", "callbacks.downstream.num_tokens=64", "eval=[core]",
    "trainer.checkpoint_every_steps=11", "trainer.log_every_steps=5",
]  # fmt: skip

SOFT = (signal.SIGTERM, signal.SIGUSR1)


def start(run_dir: Path, words: Sequence[str] = ()) -> subprocess.Popen:
    command = [sys.executable, "train.py", *OVERRIDES, *words, f"run_dir={run_dir}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()


def last_step(run_dir: Path) -> int:
    table = run_dir / "metrics.csv"
    lines = table.read_text().splitlines() if table.exists() else []
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else -1


def kill_at(process: subprocess.Popen, run_dir: Path, step: int, number: int) -> str:
    while last_step(run_dir) < step and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, f"ended before step {step}"
    os.kill(process.pid, number)
    output = process.communicate()[0].decode()
    # 75 asks a cluster to queue the job again
    assert process.returncode == (75 if number in SOFT else -number), output
    return output


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("words", [[], ["resample=worst_example"]], ids=["scaled", "worst_example"])
def test_stopped_three_times_equals_never_stopped(words, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(start(whole, words))

    seed = random.randrange(10**6)
    # far apart: a signal must not reach a process that is still starting
    kills = [random.Random(seed + i).randrange(110 * i + 20, 110 * i + 90) for i in range(3)]
    for step, number in zip(kills, (signal.SIGKILL, *SOFT), strict=True):
        output = kill_at(start(broken, words), broken, step, number)
        if number in SOFT:  # nothing is lost, and the user is told how to go on
            saved = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)
            assert saved["global_step"] > step
            assert f"The same command with run_dir={broken} continues." in output
    finish(start(broken, words))

    where = f"kills at steps {kills}"
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes(), where
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (whole, broken)
    )
    assert one["global_step"] > 340
    assert one["state_dict"]["revived"] > 0, "the test must cross a resampling"
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(one[part], other[part]), f"{part} differs, {where}"
    assert (whole / "sae" / "sae.safetensors").read_bytes() == (
        broken / "sae" / "sae.safetensors"
    ).read_bytes()


def test_the_comparison_can_fail():
    assert equal({"a": [torch.zeros(2), 1]}, {"a": [torch.zeros(2), 1]})
    assert not equal({"a": [torch.zeros(2)]}, {"a": [torch.tensor([0.0, 1e-9])]})
    assert not equal({"a": 1}, {"b": 1})


WORLD = [
    "activations=superposition", "activations.d_in=8", "activations.num_features=16",
    "activations.active=2", "tokens=2048", "activations.val_tokens=512",
    "activations.test_tokens=512", "trainer.batch_size=32", "epochs=1", "eval=[core]",
    "logger=none", "trainer.precision=32-true", "trainer.validations=2",
]  # fmt: skip


@pytest.mark.parametrize("words", [["sae=jumprelu", "target_l0=2"], ["sae=topk", "k=2"]])
def test_a_run_that_compiles_the_kernels_is_as_one_that_finds_them(tmp_path, monkeypatch, words):
    """Numba's code must round alike, fresh and out of its cache: else a killed run differs."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    tables = []
    for name in ("compiles", "finds"):
        command = [sys.executable, "train.py", *WORLD, *words, f"run_dir={tmp_path / name}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
        assert list((tmp_path / "numba").rglob("*.nbc"))
        tables.append((tmp_path / name / "metrics.csv").read_bytes())
    assert tables[0] == tables[1]
