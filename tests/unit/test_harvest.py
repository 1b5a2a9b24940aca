"""Harvesting: one pass, resumable after kill -9, once for many processes, clear refusals."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from _activations import LATE, MLP, RESID, FakeCorpus, FakeSource, make_spec, tree

from sae.activations import cache
from sae.activations.harvest import harvest
from sae.activations.sources import LMActivations
from sae.errors import SiteError, SourceError, StoreError
from sae.types import Point

HARVEST = """
from _activations import *
from sae.activations.harvest import harvest
small_chunks()
source = FakeSource(seconds_a_batch={seconds}, log={log!r})
harvest(make_spec(), [RESID, MLP], source=source, corpus=FakeCorpus(), batch_contexts={batch})
"""


@pytest.fixture(autouse=True)
def _small_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "ROWS_PER_CHUNK", 64)


def run_harvest(points=(RESID,), source=None, corpus=None, batch_contexts=32, **spec):
    return harvest(
        make_spec(**spec),
        list(points),
        source=source or FakeSource(),
        corpus=corpus or FakeCorpus(),
        batch_contexts=batch_contexts,
    )


def start_harvest(seconds, log, batch=4):
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])])}
    code = HARVEST.format(seconds=seconds, log=str(log), batch=batch)
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def test_all_points_come_from_one_pass():
    source = FakeSource()
    run_harvest([RESID, MLP, LATE], source)
    assert source.num_loads == 1
    assert all(asked == [MLP, RESID, LATE] for asked in source.lm.asked)
    tokens = torch.cat(source.lm.batches)
    assert tokens.shape == (250, 8)


def test_missing_points_are_added_in_one_further_pass_and_nothing_else():
    first = run_harvest([RESID])
    before = tree(first.folder)
    source = FakeSource()
    store = run_harvest([LATE, RESID, MLP], source)
    assert store.points() == [MLP, RESID, LATE]
    assert {str(point) for asked in source.lm.asked for point in asked} == {"mlp.0", "resid.3"}
    assert sum(len(batch) for batch in source.lm.batches) == 250
    assert before.items() <= tree(store.folder).items()


def test_what_is_there_costs_nothing():
    run_harvest([RESID, MLP])

    def never(*_):
        raise AssertionError("neither LM nor text is needed")

    source, corpus = FakeSource(), FakeCorpus()
    source.load = source.load_tokenizer = corpus.documents = never
    run_harvest([MLP], source, corpus)


@pytest.mark.slow
@pytest.mark.parametrize("batch_contexts", [1, 4, 9, 20, 1000])
def test_batches_of_any_size_give_the_same_rows(batch_contexts, tmp_path, monkeypatch):
    expected = tree(run_harvest().folder)
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "other"))
    source = FakeSource()
    assert tree(run_harvest(source=source, batch_contexts=batch_contexts).folder) == expected
    assert max(map(len, source.lm.batches)) <= batch_contexts


def test_progress_counts_tokens(caplog):
    with caplog.at_level("INFO", logger="sae.progress"):
        run_harvest([RESID, LATE])
    assert "harvest resid.0, resid.3 (train): 2,000 of 2,000 tokens" in caplog.text


def test_splits_are_stores_of_their_own():
    stores = [run_harvest(split=split, tokens=400) for split in ("train", "val", "test")]
    assert len({store.folder for store in stores}) == 3
    assert len({store.tokens.tobytes() for store in stores}) == 3


@pytest.mark.slow
def test_a_killed_harvest_continues_with_the_same_bytes_and_statistics(tmp_path, monkeypatch):
    log = tmp_path / "log"
    spec = make_spec()
    for chunks in (5, 15):
        process = start_harvest(0.02, log)
        last = spec.folder / "partial" / "resid.0" / "c" / str(chunks)
        give_up = time.monotonic() + 60
        while not last.exists() and time.monotonic() < give_up and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -9
    source = FakeSource()
    store = run_harvest([RESID, MLP], source, batch_contexts=4)
    assert sum(map(len, source.lm.batches)) <= 250 - 14 * 9  # it continued
    assert not (store.folder / "partial").exists()

    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "whole"))
    whole = run_harvest([RESID, MLP], batch_contexts=4)
    assert tree(whole.folder) == tree(store.folder)
    for point in (RESID, MLP):
        ours, theirs = store.rows(point).stats, whole.rows(point).stats
        assert json.dumps(ours.to_json()) == json.dumps(theirs.to_json())


def test_a_torn_chunk_of_a_killed_harvest_is_computed_again():
    class Stops(Exception):
        pass

    source = FakeSource()
    capture, done = source.lm.capture, []

    def stop_after_12(tokens, points):
        done.append(1)
        if len(done) > 12:
            raise Stops
        return capture(tokens, points)

    source.lm.capture = stop_after_12
    with pytest.raises(Stops):
        run_harvest(source=source, batch_contexts=9)
    torn = make_spec().folder / "partial/resid.0/c/4/0"
    torn.write_bytes(torn.read_bytes()[:-3])
    source = FakeSource()
    run_harvest(source=source, batch_contexts=9)
    assert sum(map(len, source.lm.batches)) == 250 - 4 * 9


@pytest.mark.slow
def test_two_processes_harvest_once(tmp_path):
    log = tmp_path / "log"
    processes = [start_harvest(0.005, log) for _ in range(2)]
    assert [process.wait(timeout=100) for process in processes] == [0, 0]
    lines = log.read_text().splitlines()
    assert len(set(lines)) == 1
    assert len(lines) == 27 * 3 + 2  # 27 chunks of 9 contexts in batches of 4, 4, 1, then 4, 3


def test_float16_overflow_names_the_remedy():
    with pytest.raises(StoreError, match=r"resid\.0 is .* too large for float16.*dtype=bfloat16"):
        run_harvest(source=FakeSource(factor=1e6), dtype="float16")
    run_harvest(source=FakeSource(factor=1e6), dtype="bfloat16")


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(StoreError, match=r"resid\.0 hold NaN or infinite values"):
        run_harvest(source=FakeSource(factor=float("nan")))


def test_a_full_disk_is_refused_before_the_pass(monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 5_000, 5_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    source = FakeSource()
    with pytest.raises(StoreError, match=r"0\.00 GB are free there, 0\.00 GB are still needed"):
        run_harvest(source=source)
    assert not source.lm.batches


def test_a_disk_that_fills_up_is_named_and_the_harvest_continues(monkeypatch):
    from zarr.storage import _local

    put, written = _local._put, []

    def full(path, value, exclusive=False):
        if "partial" in str(path) and len(written) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return put(path, value, exclusive)

    monkeypatch.setattr(_local, "_put", full)
    with pytest.raises(StoreError, match=r"Cannot write .*No space left.*still needed.*SAE_CACHE"):
        run_harvest(batch_contexts=9)
    monkeypatch.setattr(_local, "_put", put)
    source = FakeSource()
    run_harvest(source=source, batch_contexts=9)
    assert 0 < sum(map(len, source.lm.batches)) < 250


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StoreError, match=r"Cannot write .*Not a directory.*SAE_CACHE"):
        run_harvest()


def test_a_folder_without_permission_is_named(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(cache.FileLock, "acquire", refuse)  # chmod would not stop root
    with pytest.raises(StoreError, match=r"Permission denied.*check the permissions"):
        run_harvest()


def test_unknown_points_and_short_texts_are_errors_of_their_own():
    with pytest.raises(SiteError, match="layers 0 to 3"):
        run_harvest([Point("resid", 9)])
    with pytest.raises(SourceError, match="tokens"):
        run_harvest(corpus=FakeCorpus(20))


def test_lm_activations_harvest_three_splits_and_load_the_lm_once():
    source = FakeSource()
    activations = LMActivations(
        source, FakeCorpus(), RESID, tokens=4000, val_tokens=400, test_tokens=400, ctx=8,
        special="keep", max_norm=None,
    )  # fmt: skip
    with pytest.raises(StoreError, match="not harvested yet"):
        activations.split("train")
    activations.prepare(also=[LATE])
    activations.prepare()
    assert source.num_loads == 1
    assert activations.split("val").num_rows == 50 * 7
    assert activations.store("test").points() == [RESID, LATE]
    described = json.loads(json.dumps(activations.describe()))
    other = LMActivations(
        source, FakeCorpus(), LATE, tokens=4000, val_tokens=400, test_tokens=400, ctx=8
    )
    assert described["key"] != other.describe()["key"]
    assert described["stores"] == other.describe()["stores"]
