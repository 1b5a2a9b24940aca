"""`auto` as a dtype is resolved by the process that a user starts; jobs and ranks take it over."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = ["debug=tiny", "epochs=1", "tokens=4096", "sae=topk", "k=4", "eval=[core]", "logger=none",
        "~callbacks.downstream", "trainer.accelerator=cpu"]  # fmt: skip
# No machine finds this: the LM's products faster in bfloat16, the SAE's not, its selection
# in int8. Who measures writes down its process; a look at the verdict for the warning of a slow
# dtype is no resolution.
DRIVER = f"""
import os, sys, traceback
sys.path.insert(0, {str(ROOT)!r})
from sae import dtypes

def measure(kind, dtype, rows=None):
    if any(frame.name == "fast_dtype" for frame in traceback.extract_stack()):
        with open(os.environ["MEASURED"], "a") as file:
            file.write(f"{{os.getpid()}} {{kind}}\\n")
    return {{"lm": 2.0, "sae": 0.1, "selection": 2.0}}[kind]

dtypes.measure = measure
if __name__ == "__main__":
    import train
    from conf import ensemble
    from conf.commandline import run_program

    ensemble.register()
    run_program("train", train.main)
"""


def start(folder, *words):
    """Train with what is `auto` by default; gives who measured what."""
    driver, measured = folder / "drive.py", folder / "measured"
    driver.write_text(DRIVER)
    environment = os.environ | {
        "SAE_AUTO": "", "XDG_CACHE_HOME": str(folder / "user"), "MEASURED": str(measured),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, str(driver), *words, *TINY, "lm.dtype=auto", "trainer.precision=auto"],
        capture_output=True, text=True, timeout=280, env=environment, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.split() for line in measured.read_text().splitlines()]


def assert_resolved(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["lm"]["dtype"], config["trainer"]["precision"]) == ("bfloat16", "32-true")
    assert config["trainer"]["kernels"] == "int8"
    saved = json.loads((run / "sae" / "config.json").read_text())
    assert saved["metadata"]["activations"]["lm"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("launcher", ["basic", "joblib", "ensemble"])
def test_jobs_of_a_sweep_take_over_what_was_resolved(launcher, tmp_path):
    words = [] if launcher == "basic" else [f"launcher={launcher}"]
    measured = start(tmp_path, "-m", "seed=0,1", *words, f"sweep_dir={tmp_path / 'sweep'}")
    assert sorted(kind for _, kind in measured) == ["lm", "sae", "selection"]
    for job in ("0", "1"):
        assert_resolved(tmp_path / "sweep" / job)


def test_ranks_take_over_what_was_resolved(tmp_path):
    measured = start(tmp_path, "trainer=ddp", f"run_dir={tmp_path / 'run'}")
    assert sorted(kind for _, kind in measured) == ["lm", "sae", "selection"]  # of one process
    assert_resolved(tmp_path / "run")


def test_another_dtype_is_another_lm_and_a_slow_one_is_warned_of_once(
    tmp_path, monkeypatch, caplog
):
    from evaluate import evaluate
    from sae import dtypes
    from sae.language import sources
    from train import compose, train

    monkeypatch.setattr(dtypes, "_folder", lambda: tmp_path / "speed")
    for kept in (dtypes.speedup, sources._warn_if_slow):
        kept.cache_clear()
    with monkeypatch.context() as once:  # a machine on which bfloat16 takes 3 times as long
        once.setattr(dtypes, "measure", lambda *given: 1 / 3)
        dtypes.speedup("lm", "bfloat16")
    dtypes.speedup.cache_clear()
    monkeypatch.setattr(dtypes, "measure", lambda *given: pytest.fail("it is known"))
    words = [*TINY, "lm.dtype=bfloat16", "trainer.precision=32-true"]
    try:
        train(compose(words), tmp_path / "run")
        sources._warn_if_slow.cache_clear()  # as another process
        monkeypatch.setenv("SAE_CACHE", str(tmp_path / "fresh"))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                evaluate(tmp_path / "run", {"core": {}}, device="cpu")
            slow = [r.getMessage() for r in caplog.records if "slower" in r.getMessage()]
        assert len(slow) == 1
        assert "bfloat16 3 times slower" in slow[0]
        assert "lm.dtype=float32" in slow[0]
        evaluate(tmp_path / "run", {"core": {}}, lm={"dtype": "float32"}, device="cpu")
    finally:
        for kept in (dtypes.speedup, sources._warn_if_slow):
            kept.cache_clear()
    files = {file.stem for file in (tmp_path / "run" / "evals").glob("*.json")}
    (other,) = files - {"core"}
    assert other.startswith("core-tiny_")
    assert other.endswith("_float32")
