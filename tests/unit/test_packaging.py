"""What `pip install .` installs."""

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[2]


def test_every_room_is_installed():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    installed = set(find_packages(str(ROOT), **found["find"]))
    rooms = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("sae", "callbacks", "conf")
        for file in (ROOT / top).rglob("*.py")
    }
    assert installed == rooms


def test_every_page_script_and_licence_is_installed():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    installed = {
        file
        for package, patterns in found["package-data"].items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    beside = {
        file
        for file in (ROOT / "sae").rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert len(beside) > 10
    assert beside <= installed
