"""Activations without a cache: rows and order of a cached run, with tokens alone on disk."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from _activations import FakeCorpus, FakeSource

from sae.activations import cache as cache_module
from sae.activations import stream
from sae.activations.datamodule import ActivationDataModule
from sae.activations.from_config import lm_activations
from sae.activations.order import ShuffledOrder, shuffled_batches
from sae.activations.rows import Rows
from sae.activations.stream import StreamedActivations, measured_chunks
from sae.errors import ConfigError, SiteError, SourceError, StoreError
from sae.features.watched import WatchedText
from sae.types import SPLITS, Point

LM = {"kind": "random", "name": "tiny-llama", "family": "llama"}
TEXT = {"kind": "random_words", "name": "words", "num_documents": 300}
SETTINGS = {"tokens": 4000, "val_tokens": 640, "test_tokens": 640, "ctx": 32, "dtype": "bfloat16",
            "val_fraction": 0.1, "test_fraction": 0.2, "batch_contexts": 5}  # fmt: skip
POINT = Point("resid", 1)


@pytest.fixture(autouse=True)
def _large_and_many_chunks(monkeypatch):
    """Small chunks (8 contexts, 248 rows), and a training split too large to be kept."""
    monkeypatch.setattr(cache_module, "ROWS_PER_CHUNK", 256)
    monkeypatch.setattr(stream, "SMALL", 1000)


def source(**settings):
    return lm_activations(LM, TEXT, POINT, SETTINGS | settings)


def prepared(**settings):
    made = source(**settings)
    made.prepare()
    return made


def data_of(activations, **options):
    values = {"batch_size": 96, "buffer_rows": 1000, "epochs": 2, "seed": 3, "normalize": "none"}
    return ActivationDataModule(activations, **(values | options))


def batches_from(data, step):
    data.trainer = SimpleNamespace(
        global_step=step, global_rank=0, world_size=1, accumulate_grad_batches=1
    )
    return list(data.train_dataloader())


def size(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_batches_splits_and_samples_are_those_of_the_cache_bit_for_bit():
    streamed, cached = prepared(stream=True), prepared()
    for split in SPLITS:
        ours, theirs = streamed.split(split), cached.split(split)
        assert isinstance(ours, Rows)
        assert (ours.num_rows, ours.d_in) == (theirs.num_rows, theirs.d_in)
        for i in range(theirs.num_chunks):
            assert ours.chunk_bounds(i) == theirs.chunk_bounds(i)
            assert ours.read(i).dtype == torch.bfloat16
            assert torch.equal(ours.read(i), theirs.read(i))
            assert np.array_equal(ours.documents(i), theirs.documents(i))
        with pytest.raises(IndexError):
            ours.read(theirs.num_chunks)
    ours, theirs = batches_from(data_of(streamed), 0), batches_from(data_of(cached), 0)
    assert len(ours) == len(theirs) == 2 * cached.split("train").num_rows // 96
    assert cached.split("train").num_rows < 125 * 31  # separators do not count
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(data_of(streamed).sample_rows(300, 7), data_of(cached).sample_rows(300, 7))


@pytest.mark.slow
def test_massive_rows_are_left_out_of_small_splits_and_replaced_in_large_ones():
    """Under a cut at 1.1 medians, which leaves out a good part of the rows of a tiny LM."""
    streamed, cached = prepared(stream=True, max_norm=1.1), prepared(max_norm=1.1)
    limit = cached.counted.limits[str(POINT)]
    assert streamed.counted.limits[str(POINT)] == pytest.approx(limit, rel=0.05)  # of a sample
    ours = prepared(stream=True, max_norm=1.1, norm_limits={str(POINT): limit})
    for split in ("val", "test"):
        ours_there, theirs = ours.split(split), cached.split(split)
        assert 0 < theirs.num_rows < 600
        for i in range(theirs.num_chunks):
            assert torch.equal(ours_there.read(i), theirs.read(i))
            assert np.array_equal(ours_there.documents(i), theirs.documents(i))
    large, store = ours.split("train"), cached.store("train")
    raw = store.rows(POINT)
    separators = set(cached.counted.special_ids)
    for i in range(raw.num_chunks):
        x, tokens = raw.read(i), store.tokens_of(i)
        counts = [t not in separators and row.float().norm() <= limit
                  for row, t in zip(x, tokens, strict=True)]  # fmt: skip
        expected = []
        for j, token in enumerate(tokens):
            if token not in separators:
                before = [k for k in range(j + 1) if counts[k]] or [counts.index(True)]
                expected.append(x[before[-1]])
        assert torch.equal(large.read(i), torch.stack(expected))
        assert large.chunk_bounds(i)[1] - large.chunk_bounds(i)[0] == len(expected)
        assert large.mask(i, x).tolist() == [bool(one) for one in counts]


@pytest.mark.slow
def test_any_step_is_reached_by_arithmetic_and_reads_only_its_blocks(monkeypatch):
    data = data_of(prepared(stream=True))
    expected = batches_from(data, 0)
    read, rows = [], data.rows("train")
    monkeypatch.setattr(rows, "read", lambda i, inner=rows.read: read.append(i) or inner(i))
    for step in (1, 47, len(expected) - 1):
        assert all(map(torch.equal, batches_from(data, step), expected[step:]))
    read.clear()
    batches_from(data, len(expected) - 1)
    assert len(read) <= 4 + 4  # the blocks (4 chunks) that hold the last batch


@pytest.mark.slow
def test_only_tokens_are_on_disk(cache: Path):
    streamed = prepared(stream=True)
    before = size(cache)
    batches_from(data_of(streamed, normalize="mean_square"), 0)
    assert size(cache) == before
    tokens = 2 * 4 * (4000 + 640 + 640)  # tokens and documents, int32
    beside = before - tokens
    assert 0 < beside < 25_000  # metadata and the statistics, however many tokens
    assert not list(cache.glob("activations/*/activations/*/zarr.json"))
    assert source().store("train").points() == []


@pytest.mark.slow
def test_a_later_harvest_uses_the_same_tokens():
    tokens = prepared(stream=True).store("train")
    cached = prepared().store("train")
    assert cached.folder == tokens.folder
    assert cached.points() == [POINT]


@pytest.mark.slow
def test_scale_of_a_large_split_is_measured_on_a_sample_that_stays():
    streamed, exact = prepared(stream=True).split("train"), prepared().split("train").stats
    chosen = measured_chunks(streamed.all.store.spec)
    assert len(set(chosen)) == 1000 // 248
    assert chosen != list(range(4))
    sampled = streamed.stats
    assert 0.9 * 4 * 248 < sampled.num_rows < 4 * 248  # separators do not count
    assert sampled.scale == pytest.approx(exact.scale, rel=0.02)
    again = source(stream=True).split("train")  # as in another process
    again.lm = None  # would fail if it were needed
    assert json.dumps(again.stats.to_json()) == json.dumps(sampled.to_json())


@pytest.mark.slow
def test_small_splits_are_computed_once_and_exact():
    streamed, cached = prepared(stream=True), prepared()
    val = streamed.split("val")
    assert streamed.split("val") is val
    assert json.dumps(val.stats.to_json()) == json.dumps(cached.split("val").stats.to_json())
    val.lm = None  # would fail if it were needed again
    assert torch.equal(val.read(1), cached.split("val").read(1))


def test_the_key_is_that_of_the_cache_where_the_scale_is_too(monkeypatch):
    large, cached = source(stream=True).describe(), source().describe()
    assert large["key"] != cached["key"]
    assert (large["stores"], large["stream"]) == (cached["stores"], True)
    assert large["measured_rows"] == 992
    with pytest.raises(StoreError, match="activations had the key"):
        data_of(prepared()).load_state_dict(data_of(source(stream=True)).state_dict())
    monkeypatch.setattr(stream, "SMALL", 10_000)
    small = source(stream=True).describe()
    assert small["key"] == cached["key"]
    assert small["measured_rows"] == 125 * 31


@pytest.mark.slow
def test_watched_latents_of_a_large_streamed_split_stand_at_their_own_tokens():
    """Such a split gives another row in place of each massive one."""
    streamed = prepared(stream=True, val_tokens=2560, max_norm=1.1)
    rows = streamed.split("val")
    assert isinstance(rows, stream.ReplacedRows)
    stored = torch.cat([rows.all.read(i) for i in range(rows.num_chunks)]).float()
    given = torch.cat([rows.read(i) for i in range(rows.num_chunks)]).float()
    masks = [rows.mask(i, rows.all.read(i)) for i in range(rows.num_chunks)]
    counted = torch.cat(masks).reshape(-1, 31)
    norms = stored.norm(dim=1).reshape(-1, 31)
    assert 0.1 < counted.float().mean() < 0.9
    look = WatchedText(streamed, rows).look
    shown = look(7, np.arange(len(given)), given.norm(dim=1).numpy(), 20)
    assert shown["density"] == 1.0
    tokens = streamed.store("val").tokens
    text = WatchedText(streamed, rows).text
    for context in shown["contexts"]:
        values = [value for value in context["values"] if value is not None]
        assert any(
            all(
                value == pytest.approx(float(norm), rel=1e-6)
                for value, norm in zip(values, row[mask][start:], strict=False)
            )
            for row, mask in zip(norms, counted, strict=True)
            for start in range(int(mask.sum()))
        )
    assert np.array_equal(text.counted[:, 1:], counted.numpy())
    assert np.array_equal(text.tokens, tokens)


def test_mistakes_come_before_training():
    def activations(point=POINT, documents=400, **source_options):
        return StreamedActivations(
            FakeSource(**source_options), FakeCorpus(documents), point,
            tokens=2000, val_tokens=80, test_tokens=80, ctx=8, dtype="float16",
        )  # fmt: skip

    with pytest.raises(SourceError, match="Ask for fewer"):
        activations(documents=20).prepare()
    with pytest.raises(SiteError, match="layers 0 to 3"):
        activations().prepare(also=[Point("resid", 9)])
    with pytest.raises(StoreError, match="too large for float16"):
        activations(factor=1e6).prepare()
    with pytest.raises(StoreError, match="not tokenised yet"):
        source(stream=True, seed=9).split("train")


@pytest.mark.slow
def test_one_lm_serves_threads_that_read_and_splice_at_once():
    streamed = prepared(stream=True)
    rows, lm = streamed.split("train"), streamed.load_lm("cpu")
    assert lm is rows.all.passes.lm
    expected = [rows.read(i) for i in range(8)]
    tokens = torch.as_tensor(streamed.store("val").tokens[:4])
    spliced = lm.logits(tokens, {POINT: torch.zeros_like})
    found: dict[int, torch.Tensor] = {}

    def read():
        for i in range(8):
            found[i] = rows.read(i)

    thread = threading.Thread(target=read)
    thread.start()
    while thread.is_alive():
        assert torch.equal(lm.logits(tokens, {POINT: torch.zeros_like}), spliced)
    thread.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(8))


def test_rows_do_not_depend_on_the_mode_of_the_reader():
    streamed = prepared(stream=True)
    expected = streamed.split("train").read(0)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        val = streamed.split("val").read(0)
        assert torch.equal(streamed.split("train").read(0), expected)
    assert not val.is_inference()


@pytest.mark.slow
def test_leaving_does_not_wait_for_the_rest_of_a_block():
    rows = prepared(stream=True).split("train")
    order = ShuffledOrder(rows, seed=0, buffer_rows=1000)
    reading, go_on, read = threading.Event(), threading.Event(), rows.read
    count = []

    def slow(i):
        count.append(i)
        if len(count) > 4:  # the second block, in the thread
            reading.set()
            assert go_on.wait(60)
        return read(i)

    rows.read = slow
    batches = shuffled_batches(rows, order, batch_size=96, start_step=0, stop_step=40, scale=1.0)
    next(batches)
    assert reading.wait(60)
    threading.Timer(0.2, go_on.set).start()
    batches.close()
    assert len(count) == 5


@pytest.mark.slow
def test_a_streamed_run_equals_a_cached_one_and_is_evaluated(tmp_path, cache, monkeypatch):
    """With exact statistics (a split within SMALL) even the saved weights are the same."""
    from evaluate import evaluate
    from train import compose, harvest, train

    monkeypatch.setattr(stream, "SMALL", 10_000)
    own = [
        "debug=tiny", "epochs=2", "trainer.validations=1", "resample.sample_tokens=512",
        "eval.core.resamples=20", "eval.downstream.resamples=20", "eval.downstream.num_tokens=512",
    ]  # fmt: skip
    results = {}
    for name, given in {"streamed": ["activations.stream=true"], "cached": []}.items():
        results[name] = train(compose([*own, *given]), tmp_path / name)
        if name == "streamed":
            assert not list(cache.glob("activations/*/activations/*/zarr.json"))
            again = evaluate(tmp_path / name, {"core": {}, "downstream": {}}, device="cpu")
            for word, result in again.items():
                assert result.to_json()["metrics"] == results[name][word]["metrics"]
            assert not list(cache.glob("activations/*/activations/*/zarr.json"))
    for part in ("core", "downstream"):
        assert results["streamed"][part]["metrics"] == results["cached"][part]["metrics"]
    weights = [(tmp_path / name / "sae" / "sae.safetensors").read_bytes() for name in results]
    assert weights[0] == weights[1]
    described = json.loads((tmp_path / "streamed" / "sae" / "config.json").read_text())
    assert described["metadata"]["activations"]["stream"] is True

    with pytest.raises(ConfigError, match=r"stream=true, but activations.stream=false"):
        train(compose([*own, "activations.stream=false"]), tmp_path / "streamed")
    with pytest.raises(ConfigError, match="harvest_only=true has no effect"):
        harvest(compose([*own, "activations.stream=true", "harvest_only=true"]))
