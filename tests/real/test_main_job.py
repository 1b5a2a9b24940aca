"""The README's first command, word for word, with an empty cache: what every user does first."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.real_lm


def readme_command() -> list[str]:
    """The words of `python train.py …` in the README's first block."""
    text = (ROOT / "README.md").read_text()
    found = re.search(r"pip install -e \. && python (train\.py [^\n]*)", text)
    assert found, "the README's first command has another form"
    return found[1].split()


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main_job")
    environment = os.environ | {"SAE_CACHE": str(folder / "cache")}
    environment.pop("OMP_NUM_THREADS", None)  # of workers of pytest: users have all cores
    command = [sys.executable, *readme_command(), f"run_dir={folder / 'run'}"]
    start = time.monotonic()
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2700
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / "run", environment, time.monotonic() - start


def test_quality(main_job):
    """docs/first-run.md promises these; the bounds are the project's goals."""
    results = json.loads((main_job[0] / "results.json").read_text())
    core, downstream = results["core"]["metrics"], results["downstream"]["metrics"]
    assert core["l0"]["value"] <= 100
    assert core["fvu"]["value"] < 0.10
    assert downstream["ce_recovered_zero"]["value"] >= 0.98
    assert results["training"]["dead"] < 0.02
    assert results["core"]["tokens"]["vectors"] > 100_000
    assert results["downstream"]["tokens"]["predictions"] > 15_000


def test_every_stage_is_timed(main_job):
    session = json.loads((main_job[0] / "manifest.json").read_text())["sessions"][-1]
    stages = session["stage_seconds"]
    assert {"harvest", "train", "validate", "evaluate"} <= stages.keys()
    assert sum(stages.values()) < main_job[2]


def test_a_second_run_starts_at_once_from_the_cache(main_job, tmp_path):
    run, environment, _ = main_job
    command = [
        sys.executable, "train.py", "layer=4", "sae=topk", "k=32", "dict_ratio=2", "epochs=1",
        "trainer.validations=0", "eval=[core]", "logger=none", f"run_dir={tmp_path}",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=600)
    session = json.loads((tmp_path / "manifest.json").read_text())["sessions"][-1]
    assert session["stage_seconds"]["harvest"] < 5


def test_evaluate_gives_the_reported_numbers_again(main_job):
    run, environment, _ = main_job
    command = [sys.executable, "evaluate.py", f"run={run}", "eval=[core]"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=600)
    reported = json.loads((run / "results.json").read_text())["core"]["metrics"]
    again = json.loads((run / "evals" / "core.json").read_text())["metrics"]
    for name, estimate in again.items():
        assert estimate["value"] == pytest.approx(reported[name]["value"], rel=1e-6), name
