"""Content of a wheel, and the commands that it brings."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("conf", "callbacks", "train.py", "evaluate.py")
"""Files and packages at the root of a checkout, which a wheel has inside `sae/programs`."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder as pip makes it of the wheel, which is all that Python finds of the project."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


def run(installed, code, *arguments, cwd):
    """Run Python outside the checkout; its editable installation comes last on the path."""
    env = {**os.environ, "PYTHONPATH": str(installed), "SAE_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_a_wheel_brings_every_file_and_no_name_of_others(wheel):
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sae"}
    for place in ("sae", *PROGRAMS):
        path = ROOT / place
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                inside = "" if place == "sae" else "sae/programs/"
                assert inside + str(file.relative_to(ROOT)) in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_python_finds_the_programs_of_a_wheel(installed, tmp_path):
    code = (
        "from sae.console import programs; programs(); programs(); import os, sys, conf, callbacks;"
        "print(conf.__file__, callbacks.__file__, os.environ['PYTHONPATH'], sep='\\n')"
    )
    found = run(installed, code, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    *files, path = found.stdout.splitlines()
    inside = installed / "sae" / "programs"
    assert files == [str(inside / name / "__init__.py") for name in ("conf", "callbacks")]
    assert path.split(os.pathsep) == [str(inside), str(installed)]


def test_python_finds_the_programs_of_a_checkout():
    code = "from sae.console import programs; print(programs())"
    found = run(ROOT, code, cwd=ROOT)
    assert Path(found.stdout.strip()) == ROOT


@pytest.mark.slow
def test_a_wheel_trains_sweeps_and_evaluates_outside_the_checkout(installed, tmp_path):
    train, evaluate = (
        f"import sys; from sae.console import {name} as main; main()"
        for name in ("train", "evaluate")
    )
    tiny = ("debug=tiny", "logger=none")
    for code, arguments in (
        (train, (*tiny, "run_dir=one")),
        (train, ("-m", *tiny, "sae=topk", "k=2,4", "launcher=joblib", "sweep_dir=two")),
        (evaluate, ("run=one", "eval=[core]")),
    ):
        done = run(installed, code, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one/evals/core.json").is_file()
    assert (tmp_path / "two/sweep.csv").is_file()


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
