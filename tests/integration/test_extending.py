"""docs/guides/extending.md is followed word for word in a copy of the house."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "sae", "conf", "callbacks", "tests", "benchmarks", "docs", "train.py", "evaluate.py",
    "pyproject.toml", "README.md", "CHANGELOG.md",
)  # fmt: skip
pytestmark = pytest.mark.slow


def blocks():
    text = (ROOT / "docs" / "guides" / "extending.md").read_text(encoding="utf-8")
    return re.findall(r"^```(python|yaml|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def put(house, block):
    """The first line of a block is a comment that names its file, or a table in a file."""
    title, _, body = block.partition("\n")
    name, _, table = title.removeprefix("# ").partition(", in ")
    file = house / name
    if not table:
        assert not file.exists(), f"{name} is not a new file"
        file.write_text(body, encoding="utf-8")
        return
    text, opening = file.read_text(encoding="utf-8"), f"\n{table} = {{\n"
    assert text.count(opening) == 1
    file.write_text(text.replace(opening, opening + body), encoding="utf-8")


def test_the_walk_through_gives_what_it_says(tmp_path):
    house = tmp_path / "house"
    house.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, house / part)
    commands = []
    for language, block in blocks():
        if language == "bash":
            commands += block.splitlines()
        else:
            put(house, block)
    assert len(commands) >= 2
    environment = os.environ | {"PYTHONPATH": str(house), "SAE_CACHE": str(tmp_path / "cache")}
    for command in commands:
        program, *words = shlex.split(command)
        program = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest"]}[program]
        done = subprocess.run(
            [*program, *words], cwd=house, env=environment, capture_output=True, text=True,
            timeout=250,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
