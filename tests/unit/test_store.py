"""The store: layout, chunks, damage, lock, and the command line that looks after it."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import zarr
from _activations import LATE, MLP, RESID, FakeCorpus, FakeSource, make_spec

from sae.activations import cache
from sae.activations.__main__ import main
from sae.activations.cache import StoreSpec, store_lock
from sae.activations.harvest import harvest
from sae.activations.rows import ROWS_PER_CHUNK
from sae.activations.stats import RunningStats, Stats
from sae.activations.store import ActivationStore
from sae.errors import ConfigError, DegenerateInputError, StoreError


@pytest.fixture(autouse=True)
def _small_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "ROWS_PER_CHUNK", 64)


@pytest.fixture(scope="module")
def harvested(tmp_path_factory):
    """A store that is harvested once and copied for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_CACHE", str(tmp_path_factory.mktemp("harvested")))
        patch.setattr(cache, "ROWS_PER_CHUNK", 64)
        yield harvest(make_spec(), [RESID, MLP], source=FakeSource(), corpus=FakeCorpus()).folder


@pytest.fixture
def store(harvested, _small_cache):
    shutil.copytree(harvested, make_spec().folder)
    return ActivationStore.open(make_spec())


def test_a_store_is_plain_zarr_v3(store):
    group = zarr.open_group(store.folder, mode="r")
    assert group["tokens"].shape == group["document"].shape == (250, 8)
    array = group["activations/resid.0"]
    assert array.metadata.zarr_format == 3
    assert array.shape == (250 * 7, 8)
    assert array.chunks == (9 * 7, 8)
    assert str(array.dtype) == "uint16"
    assert array.attrs["dtype"] == "bfloat16"
    names = [type(codec).__name__ for codec in array.metadata.codecs]
    assert names == ["BytesCodec", "Crc32cCodec"]  # uncompressed
    metadata = json.loads((store.folder / "metadata.json").read_text())
    assert metadata["spec"] == asdict(store.spec)
    assert metadata["names"] == {"lm": "fake-lm", "corpus": "fake words"}
    assert "versions" in metadata["provenance"]


def test_rows_are_contexts_without_position_0(store):
    rows = store.rows(RESID)
    x = torch.cat([rows.read(i) for i in range(rows.num_chunks)])
    assert x.dtype == torch.bfloat16
    captured = FakeSource().lm.capture(torch.from_numpy(store.tokens).long(), [RESID])[RESID]
    torch.testing.assert_close(x, captured[:, 1:].reshape(-1, 8).bfloat16(), rtol=0, atol=0)
    context, position = store.locate(np.array([0, 6, 7, 1749]))
    assert context.tolist() == [0, 0, 1, 249]
    assert position.tolist() == [1, 7, 1, 7]


def test_keep_first_brings_position_0_back():
    spec = make_spec(keep_first=True)
    store = harvest(spec, [RESID], source=FakeSource(), corpus=FakeCorpus())
    assert store.rows(RESID).num_rows == 250 * 8
    assert store.locate(np.array([0, 8]))[1].tolist() == [0, 0]


def test_arrays_are_aligned_and_chunks_are_contexts(store):
    resid, mlp = store.rows(RESID), store.rows(MLP)
    assert (resid.d_in, mlp.d_in) == (8, 24)
    assert resid.num_chunks == mlp.num_chunks == 28
    bounds = [resid.chunk_bounds(i) for i in range(resid.num_chunks)]
    assert bounds == [mlp.chunk_bounds(i) for i in range(mlp.num_chunks)]
    assert {stop - start for start, stop in bounds[:-1]} == {63}
    assert bounds[-1] == (27 * 63, 1750)
    documents = np.concatenate([resid.documents(i) for i in range(resid.num_chunks)])
    assert np.array_equal(documents, store.document[:, 1:].reshape(-1))
    assert store.num_documents == len(np.unique(store.document))
    with pytest.raises(IndexError):
        resid.read(28)


def test_default_chunks_are_4_to_10_megabytes():
    cache.ROWS_PER_CHUNK = ROWS_PER_CHUNK
    for ctx in (64, 128, 256, 1024):
        rows = make_spec(ctx=ctx).contexts_per_chunk * (ctx - 1)
        assert 3.9e6 < rows * 576 * 2 < 10e6


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_survive(dtype):
    store = harvest(make_spec(dtype=dtype), [RESID], source=FakeSource(), corpus=FakeCorpus())
    assert store.rows(RESID).read(0).dtype == getattr(torch, dtype)


def test_chunks_of_zeros_are_written():
    store = harvest(make_spec(), [RESID], source=FakeSource(factor=0.0), corpus=FakeCorpus())
    rows = store.rows(RESID)
    assert not rows.read(3).any()
    with pytest.raises(DegenerateInputError, match="normalize=none"):
        _ = rows.stats.scale


def test_statistics_agree_with_numpy(store):
    rows = store.rows(RESID)
    x = torch.cat([rows.read(i) for i in range(rows.num_chunks)]).double().numpy()
    stats, norm = rows.stats, np.linalg.norm(x, axis=1)
    assert stats.num_rows == 1750
    assert stats.mean.dtype == np.float64
    np.testing.assert_allclose(stats.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.mean_square_norm, (norm**2).mean(), rtol=1e-12)
    np.testing.assert_allclose(stats.scale**2 * (norm**2).mean(), 8, rtol=1e-12)
    for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99):
        expected = np.quantile(norm, q, method="lower"), np.quantile(norm, q, method="higher")
        assert expected[0] * 0.994 <= stats.norm_quantiles[str(q)] <= expected[1] * 1.006
    assert (stats.norm_quantiles["min"], stats.norm_quantiles["max"]) == (norm.min(), norm.max())


def test_spread_is_that_of_ordinary_rows():
    """Three massive rows of 4,000 hold nearly all of the mean square, and leave the spread."""
    rows = 0.3 * torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)) + 0.1
    spreads = []
    for massive in (1, 1000):
        rows[:3] *= massive
        running = RunningStats(64)
        running.update(rows)
        spreads.append(running.result().spread)
    assert running.result().mean_square_norm > 50 * 64 * 0.3**2
    assert spreads[0] == pytest.approx(0.3, rel=0.05)
    assert spreads[1] == pytest.approx(0.3, rel=0.3)
    zeros = RunningStats(2)
    zeros.update(torch.zeros(3, 2))
    assert zeros.result().spread == 0


def test_statistics_of_extreme_norms_and_none():
    running = RunningStats(2)
    running.update(torch.tensor([[0.0, 0.0], [3e38, 3e38], [1e-30, 0.0]]))
    stats = running.result()
    assert stats.norm_quantiles["min"] == 0
    assert stats.norm_quantiles["0.99"] <= stats.norm_quantiles["max"]
    assert Stats.from_json(json.loads(json.dumps(stats.to_json()))).mean.tolist() == (
        stats.mean.tolist()
    )
    assert RunningStats(2).result().num_rows == 0


def damage(store, how):
    """Return (the damaged file, the entry that the error must name)."""
    key, rows = store.folder.name, store.folder / "activations" / "resid.0"
    if how == "flipped byte":
        file = rows / "c/7/0"
        content = bytearray(file.read_bytes())
        content[501] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        file = rows / "c/7/0"
        file.write_bytes(file.read_bytes()[:-10])
    elif how == "missing":
        file = rows / "c/7/0"
        file.unlink()
    elif how == "empty metadata":
        file = rows / "metadata.json"
        file.write_text("")
    elif how == "changed statistics":
        file = rows / "metadata.json"
        file.write_text(file.read_text().replace('"num_rows": 1750', '"num_rows": 1751'))
    elif how == "no array":
        file = rows / "zarr.json"
        file.unlink()
    elif how == "other shape":
        file = rows / "zarr.json"
        file.write_text(file.read_text().replace("1750", "1751"))
    return file, f"{key}/resid.0"


@pytest.mark.parametrize(
    "how",
    ["flipped byte", "truncated", "missing", "empty metadata", "changed statistics", "no array",
     "other shape"],
)  # fmt: skip
def test_damage_is_detected_and_named(store, how, capsys):
    file, entry = damage(store, how)
    with pytest.raises(StoreError) as caught:
        ActivationStore.open(store.spec).rows(RESID).read(7)
    message = str(caught.value)
    assert str(file) in message
    assert f"`python -m sae.activations remove {entry} --yes`" in message
    # The remedy works: exactly this entry is harvested again.
    assert main(["remove", entry, "--yes"]) == 0
    source = FakeSource()
    again = harvest(store.spec, [RESID, MLP], source=source, corpus=FakeCorpus())
    assert source.lm.asked[0] == [RESID]
    again.rows(RESID).read(7)


@pytest.mark.parametrize("name", ["tokens", "document"])
def test_damaged_tokens_are_named(store, name):
    file = store.folder / name / "c/0/0"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(StoreError, match=rf"{name}.*is damaged.*remove {store.folder.name} --yes"):
        getattr(ActivationStore.open(store.folder), name)


def test_no_flipped_byte_of_the_array_metadata_passes_as_other_data(store):
    file = store.folder / "activations/resid.0/zarr.json"
    intact, expected = file.read_bytes(), store.rows(RESID).read(3)
    caught = 0
    for i in range(0, len(intact), 5):
        file.write_bytes(intact[:i] + bytes([intact[i] ^ 1]) + intact[i + 1 :])
        try:
            assert torch.equal(store.rows(RESID).read(3), expected)
        except StoreError:
            caught += 1
    assert caught > 40


def test_a_store_elsewhere_names_its_cache(store, monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "other"))
    damage(store, "missing")
    with pytest.raises(StoreError, match=rf"SAE_CACHE={tmp_path}/cache python -m"):
        ActivationStore.open(store.folder).rows(RESID).read(7)


def test_what_is_not_there_is_said(store):
    with pytest.raises(StoreError, match=r"has no resid\.3; it holds mlp\.0, resid\.0"):
        store.rows(LATE)
    with pytest.raises(StoreError, match="Harvest them first"):
        ActivationStore.open(make_spec(seed=1))


def test_the_key_follows_from_what_decides_the_rows():
    spec = make_spec()
    assert spec.key == replace(spec).key
    changes = {"lm": {"kind": "x"}, "corpus": {}, "split": "val", "ctx": 9, "tokens": 2001,
               "dtype": "float32", "seed": 1, "val_fraction": 0.2, "test_fraction": 0.2,
               "keep_first": True}  # fmt: skip
    assert len({spec.key} | {replace(spec, **{k: v}).key for k, v in changes.items()}) == 11
    assert StoreSpec(**json.loads(json.dumps(asdict(spec)))).key == spec.key


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"ctx": 1}, "keep_first=true"), ({"tokens": 7}, "less than one context")],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_spec(**changes)


# --- the command line ---------------------------------------------------------------------------


def test_list_shows_every_store(store, capsys):
    harvest(make_spec(split="val", tokens=400), [RESID], source=FakeSource(), corpus=FakeCorpus())
    (store.folder.parent / "0123456789abcdef").mkdir()
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if store.folder.name in line)
    for word in ("fake-lm", "fake words", "train", "2,000", "mlp.0, resid.0", "bfloat16",
                 "complete"):  # fmt: skip
        assert word in row
    assert "val" in next(line for line in lines if make_spec(split="val", tokens=400).key in line)
    assert "a harvest was killed" in next(line for line in lines if "0123456789abcdef" in line)
    with store_lock(store.folder):
        main(["list"])
    assert "locked" in capsys.readouterr().out


def test_list_of_no_cache(capsys):
    assert main(["list"]) == 0
    assert "0 kB" in capsys.readouterr().out


def test_remove(store, capsys):
    key = store.folder.name
    assert main(["remove", key]) == 0  # without --yes nothing happens
    assert "Nothing was removed" in capsys.readouterr().out
    assert main(["remove", f"{key}/mlp.0", "--yes"]) == 0
    assert ActivationStore.open(store.spec).points() == [RESID]
    with store_lock(store.folder):
        assert main(["remove", key, "--yes"]) == 1
    assert "being harvested" in capsys.readouterr().err
    assert main(["remove", "--all", "--yes"]) == 0
    assert not store.folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["feedbeef"], "StoreError: 'feedbeef' is not the key of a store"),
        ([], "ConfigError: Say what to remove"),
    ],
)
def test_remove_explains_mistakes(store, arguments, message, capsys):
    assert main(["remove", *arguments, "--yes"]) == 1
    error = capsys.readouterr().err
    assert message in error
    if arguments:
        assert store.folder.name in error


def test_remove_knows_the_points_of_a_store(store, capsys):
    assert main(["remove", f"{store.folder.name}/resid.9", "--yes"]) == 1
    assert "it holds mlp.0, resid.0" in capsys.readouterr().err
