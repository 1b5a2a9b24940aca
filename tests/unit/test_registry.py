"""Parts that are found by the name of their module."""

import sys

import pytest

from sae.errors import ConfigError
from sae.registry import Registry

PART = "from {package} import PARTS\n\n@PARTS.register('{word}')\nclass {word}: ...\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the parts `one` and `two`, and a helper that registers nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    name = "parts_of_a_test"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(
        f"from sae.registry import Registry\nPARTS = Registry('part', 'name', '{name}')\n"
    )
    (folder / "helper.py").write_text("")
    for word in ("two", "one"):
        (folder / f"{word}.py").write_text(PART.format(package=name, word=word))
    yield name
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        del sys.modules[module]


def parts(package) -> Registry:
    return __import__(package).PARTS


def test_a_part_is_imported_when_it_is_looked_up(package):
    found = parts(package)
    assert found.find("one").name == "one"
    assert f"{package}.two" not in sys.modules
    assert "two" in found
    assert f"{package}.helper" not in sys.modules


def test_listing_imports_all(package):
    found = parts(package)
    assert list(found) == ["one", "two"]
    assert len(found) == 2


@pytest.mark.parametrize("name", ["helper", "three", "one.two", "../one", "", None, ["one"]])
def test_what_is_no_part_is_refused_with_the_parts(package, name):
    with pytest.raises(ConfigError, match=r"one, two"):
        parts(package).find(name)
    assert isinstance(name, list) or name not in parts(package)
