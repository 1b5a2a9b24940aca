"""What an SAE's own configuration may name: wheels of conf/ and of the cache; the rest is told."""

import logging

import pytest

from sae.errors import ArtifactError, ConfigError
from sae.language.fetch import WheelFile
from sae.language.trust import check_asked, check_named


def named(wheel, known=()):
    check_named({"kind": "wheel", "wheel": wheel}, known, "theirs/config.json", "lm")


def test_a_listed_wheel_passes_and_one_that_differs_in_anything_does_not(toy_wheel):
    wheel = toy_wheel({"toy/a.txt": b"hello"})
    known = [WheelFile(**wheel)]
    named(wheel, known)
    named(wheel | {"bytes": None}, known)  # only the progress bar needs it
    for field, other in (
        ("package", "b"), ("version", "2"), ("sha256", "1" * 64), ("member", "toy/b.txt")
    ):  # fmt: skip
        with pytest.raises(ArtifactError, match="theirs/config.json names the wheel"):
            named(wheel | {field: other}, known)


def test_a_wheel_passes_that_the_cache_has_byte_for_byte(toy_wheel):
    wheel = toy_wheel({"toy/a.txt": b"hello", "toy/b.txt": b"other"})
    with pytest.raises(ArtifactError):
        named(wheel)
    WheelFile(**wheel).fetch()
    named(wheel)
    named(wheel | {"member": "toy/b.txt"})
    WheelFile(**wheel).folder.joinpath("package.whl").write_bytes(b"other")
    with pytest.raises(ArtifactError):
        named(wheel)


def test_what_is_no_wheel_at_all_is_a_mistake():
    with pytest.raises(ConfigError, match="sha256"):
        named({"package": "a", "version": "1"})


@pytest.mark.parametrize("field", ["repo", "dataset", "path", "csv"])
def test_a_new_place_is_told_once(field, caplog):
    for place in ("me/one", "me/two", "me/one"):
        with caplog.at_level(logging.WARNING):
            check_named({field: place}, (), "theirs", "corpus")
    told = [record.getMessage() for record in caplog.records]
    assert [f"corpus.{field}=me/one" in line for line in told] == [True, False]
    assert [f"corpus.{field}=me/two" in line for line in told] == [False, True]


def test_a_chat_lm_that_only_a_file_names_is_not_asked():
    theirs = {"core": {}, "autointerp": {"chat": {"base_url": "https://evil/v1", "model": "m"}}}
    with pytest.raises(ConfigError, match="https://evil/v1.*Nothing was sent"):
        check_asked(theirs, {"autointerp": {"chat": {"base_url": None}}}, "theirs/config.yaml")
    check_asked(theirs, {"autointerp": theirs["autointerp"]}, "theirs/config.yaml")
    check_asked({"core": None, "autointerp": {"chat": {"base_url": None}}}, {}, "theirs")
