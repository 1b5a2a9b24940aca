"""A user's own activations: every kind of file, the splits, the cache, and what is refused."""

import json

import numpy as np
import pytest
import torch
import zarr
from safetensors.torch import save_file

from sae.activations import folder, rows
from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import FolderActivations, TensorActivations
from sae.errors import ConfigError, StoreError

X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


@pytest.fixture(autouse=True)
def _small_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "ROWS_PER_CHUNK", 64)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine"
    path.mkdir()
    np.save(path / "a.npy", X[:100])
    torch.save(torch.from_numpy(X[100:150]), path / "b.pt")
    save_file({"x": torch.from_numpy(X[150:220])}, path / "c.safetensors")
    zarr.create_array(path / "d.zarr", data=X[220:], chunks=(50, 6))
    (path / "README.md").write_text("mine")
    return path


def read(rows):
    return torch.cat([rows.read(i) for i in range(rows.num_chunks)]).numpy()


def test_all_kinds_are_one_sequence_in_the_order_of_names(mine):
    source = FolderActivations(mine, val_fraction=0.1, test_fraction=0.2)
    source.prepare()
    assert np.array_equal(read(source.split("train")), X[:210])
    assert np.array_equal(read(source.split("val")), X[210:240])
    assert np.array_equal(read(source.split("test")), X[240:])
    rows = source.split("train")
    assert (rows.num_rows, rows.d_in, rows.num_chunks) == (210, 6, 4)
    assert rows.chunk_bounds(3) == (192, 210)
    assert rows.documents(0) is None
    x = X[:210].astype(np.float64)
    np.testing.assert_allclose(rows.stats.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(rows.stats.mean_square_norm, (x**2).sum(1).mean(), rtol=1e-12)


@pytest.mark.parametrize("name", ["a.npy", "b.pt", "c.safetensors", "d.zarr"])
def test_a_single_file_will_do(mine, name):
    source = FolderActivations(mine / name)
    assert source.split("train").d_in == 6
    assert source.describe()["files"] == [name]


def test_bfloat16_is_kept(tmp_path):
    torch.save(torch.from_numpy(X).bfloat16(), tmp_path / "x.pt")
    assert FolderActivations(tmp_path / "x.pt").split("train").read(0).dtype == torch.bfloat16


def test_statistics_are_cached_outside_of_the_folder(mine, monkeypatch):
    before = {file: file.stat().st_mtime_ns for file in mine.rglob("*")}
    first = FolderActivations(mine)
    first.prepare()
    assert {file: file.stat().st_mtime_ns for file in mine.rglob("*")} == before
    with monkeypatch.context() as patch:
        patch.setattr(folder.OwnRows, "read", None)  # nothing is read the second time
        second = FolderActivations(mine)
        second.prepare()
        assert second.describe() == first.describe()
    json.dumps(first.describe())
    np.save(mine / "a.npy", X[:100] + 1)
    assert FolderActivations(mine).describe()["key"] != first.describe()["key"]


def test_a_damaged_cache_file_is_measured_again(mine, tmp_path):
    key = FolderActivations(mine).describe()["key"]
    for file in (tmp_path / "cache" / "folders").iterdir():
        file.write_text(file.read_text().replace("1", "2"))
    assert FolderActivations(mine).describe()["key"] == key


def test_it_trains(mine):
    data = ActivationDataModule(FolderActivations(mine), batch_size=27, epochs=2, buffer_rows=100)
    data.prepare_data()
    batches = torch.cat(list(data.train_dataloader()))
    assert batches.shape == (540, 6)
    expected = np.sort(X[:270, 0] * data.scale)
    np.testing.assert_allclose(np.sort(batches[:270, 0].numpy()), expected, rtol=1e-6)


def refused(path, message, **options):
    with pytest.raises(StoreError, match=message):
        FolderActivations(path, **options).prepare()


def test_values_that_are_not_finite_are_named(mine):
    x = X[220:].copy()
    x[30, 2] = np.nan
    zarr.create_array(mine / "d.zarr", data=x, chunks=(50, 6), overwrite=True)
    refused(mine, r"d\.zarr holds NaN or infinite values in row 30")


def test_widths_must_agree(mine):
    np.save(mine / "b2.npy", X[:, :5])
    refused(mine, r"b2\.npy has rows of width 5, but a\.npy of 6")


def test_no_activations(tmp_path):
    refused(tmp_path / "none", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"holds no activations \(\.npy, \.pt, .*\) but nothing")
    (tmp_path / "empty" / "x.csv").write_text("1")
    refused(tmp_path / "empty", r"but x\.csv")
    refused(tmp_path / "empty" / "x.csv", "no known kind")


@pytest.mark.parametrize(
    ("array", "message"),
    [(X[0], r"shape \[6\]"), (X.astype(int), "dtype int64"), (X[:0], r"shape \[0, 6\]"),
     (X.astype(">f4"), "byte order")],
)  # fmt: skip
def test_arrays_of_another_kind(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    refused(tmp_path, message)


def test_files_that_hold_something_else(tmp_path):
    torch.save({"x": torch.zeros(2, 2)}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "holds a dict instead of one tensor")
    torch.save(Surprise(), tmp_path / "y.pt")
    refused(tmp_path / "y.pt", "holds more than a tensor, or is damaged")
    save_file({"a": torch.zeros(2, 2), "b": torch.zeros(2, 2)}, tmp_path / "z.safetensors")
    refused(tmp_path / "z.safetensors", r"holds 2 tensors \(a, b\)")


class Surprise:
    """What a pickle may hold and must not load."""


@pytest.mark.parametrize("name", ["a.npy", "b.pt", "c.safetensors"])
def test_torn_files_are_named(mine, name):
    content = (mine / name).read_bytes()
    for length in (0, 7, len(content) // 2):
        (mine / name).write_bytes(content[:length])
        refused(mine, rf"{name} ")


def test_a_torn_zarr_is_named(mine):
    (mine / "d.zarr" / "c" / "1" / "0").write_bytes(b"x")
    refused(mine, r"d\.zarr cannot be read")
    (mine / "d.zarr" / "c" / "1" / "0").unlink()
    refused(mine, r"d\.zarr lacks 1 of its 2 chunks")
    (mine / "d.zarr" / "zarr.json").write_text("{")
    refused(mine, r"d\.zarr cannot be read as a zarr array")


def test_splits_must_hold_rows(mine):
    with pytest.raises(ConfigError, match="below 1"):
        FolderActivations(mine, val_fraction=0.5, test_fraction=0.5)
    source = FolderActivations(mine, val_fraction=0.0)
    with pytest.raises(StoreError, match="val split .* no rows.*val_fraction"):
        source.split("val")


@pytest.mark.parametrize("shards", [50, 100, 150, 300])
def test_zarr_shards_that_are_not_full(tmp_path, shards):
    """The last shard of 220 rows is not full; zarr counts its chunks beyond the end, too."""
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(220, 6), dtype="f4", chunks=(50, 6), shards=(shards, 6)
    )
    array[:] = X[:220]
    mine = FolderActivations(tmp_path / "a.zarr", val_fraction=0.0, test_fraction=0.1)
    np.testing.assert_array_equal(read(mine.split("train")), X[:198])
    (tmp_path / "a.zarr" / "c" / "0" / "0").unlink()
    of = -(-220 // shards)
    refused(tmp_path / "a.zarr", rf"lacks 1 of its {of} shards")


def test_zarr_chunks_of_zeros_that_were_not_written(tmp_path):
    x = np.concatenate([X[:100], np.zeros((100, 6), "f4")])
    zarr.create_array(tmp_path / "a.zarr", data=x, chunks=(50, 6))
    refused(tmp_path / "a.zarr", r"lacks 2 of its 4 chunks.*'write_empty_chunks': True")
    zarr.create_array(
        tmp_path / "b.zarr", data=x, chunks=(50, 6), config={"write_empty_chunks": True}
    )
    assert sum(FolderActivations(tmp_path / "b.zarr").num_rows.values()) == 200
    # inside a shard nothing is missing: its index says which chunks are zeros
    zarr.create_array(tmp_path / "c.zarr", data=x, chunks=(50, 6), shards=(200, 6))
    assert sum(FolderActivations(tmp_path / "c.zarr").num_rows.values()) == 200


@pytest.mark.parametrize("size", [1e20, 1e25, 1e40, 1e200])
def test_values_whose_squares_float32_cannot_hold(mine, size):
    x = X[:100].astype(np.float64)
    x[7] *= size
    np.save(mine / "a.npy", x)
    with np.errstate(over="ignore"):
        refused(mine, r"a\.npy holds .*e\+.*float32 cannot hold, in row 7")
    np.save(mine / "a.npy", X[:100] * np.float32(1e15))  # large, and nothing is lost
    FolderActivations(mine).prepare()


@pytest.mark.parametrize("size", [1e25, 1e200])
@pytest.mark.parametrize("kind", ["pt", "safetensors", "zarr", "tensor"])
def test_such_values_in_files_of_every_kind(tmp_path, size, kind):
    x = X.astype(np.float64)
    x[280:] *= size  # in what is held out
    rows = torch.from_numpy(x)
    if kind == "tensor":
        with pytest.raises(StoreError, match="float32 cannot hold"):
            TensorActivations(rows).prepare()
        return
    if kind == "pt":
        torch.save(rows, tmp_path / "a.pt")
    elif kind == "safetensors":
        save_file({"x": rows}, tmp_path / "a.safetensors")
    else:
        zarr.create_array(tmp_path / "a.zarr", data=x, chunks=(50, 6))
    with np.errstate(over="ignore"):
        refused(tmp_path, rf"a\.{kind} holds .*e\+.*float32 cannot hold, in row 2[89]\d")


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_arrays_of_both_formats_may_lack_nothing(tmp_path, version):
    zarr.create_array(tmp_path / "a.zarr", data=X, chunks=(50, 3), zarr_format=version)
    (tmp_path / "a.zarr" / ".DS_Store").write_bytes(b"x")
    assert sum(FolderActivations(tmp_path).num_rows.values()) == 300
    (tmp_path / "a.zarr" / ("1.0" if version == 2 else "c/1/0")).unlink()
    refused(tmp_path, "lacks 1 of its 12 chunks")


def test_values_whose_squares_vanish(tmp_path):
    np.save(tmp_path / "a.npy", X * np.float32(1e-25))
    refused(tmp_path, "norm of your activations is .*e-25.* vanish")
