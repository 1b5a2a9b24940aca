"""The callback that shows single latents at each validation."""

import json
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from _features import make_sae, placed_on, source

from callbacks.features import FILE, Features
from sae.dictionaries import build_dictionary
from sae.dictionaries.codes import DenseCode, SparseCode
from sae.features import records
from sae.features.watched import WatchedText
from sae.kernels import select_topk
from sae.reports.report import write_report

__all__ = ["source"]  # a fixture
SCALE = 0.25


class Validation:
    """A dictionary in training, and the validation that Lightning would run."""

    def __init__(self, source, folder, architecture="topk"):
        settings = {"k": 3} if architecture == "topk" else {"l1": 0.1, "start_bias": 0.0}
        self.rows = source.split("val")
        config = {"architecture": architecture, "dict_ratio": 1, **settings}
        built: Any = build_dictionary(config, d_in=self.rows.d_in)
        self.module: Any = Mock(spec=L.LightningModule)
        self.module.configure_mock(dictionary=built, scale=SCALE, tokens_seen=4096)
        self.logged = []
        self.trainer: Any = Mock(spec=L.Trainer)
        self.trainer.configure_mock(
            sanity_checking=False, world_size=1, global_rank=0, loggers=[self], global_step=7,
            default_root_dir=str(folder),
        )  # fmt: skip

    def log_latents(self, latents, step):
        self.logged.append((step, latents))

    @torch.no_grad()
    def run(self, callback):
        callback.on_validation_epoch_start(self.trainer, self.module)
        for i in range(self.rows.num_chunks):
            parts = (self.rows.read(i).float() * SCALE).tensor_split(self.trainer.world_size)
            code = self.module.dictionary.encode_code(parts[self.trainer.global_rank])
            callback.on_validation_batch_end(self.trainer, self.module, {"code": code}, None, i)
        callback.on_validation_epoch_end(self.trainer, self.module)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "l1"])
def test_a_look_shows_what_the_records_of_the_same_sae_show(source, tmp_path, architecture):
    source.prepare(splits=["val"])
    validation = Validation(source, tmp_path, architecture)
    validation.run(Features(WatchedText(source, validation.rows), latents=12, contexts=2))
    (look,) = json.loads((tmp_path / FILE).read_text())["looks"]
    assert (look["step"], look["tokens"], len(look["latents"])) == (7, 4096, 12)
    assert validation.logged == [(7, look["latents"])]
    saved = validation.module.dictionary.folded(SCALE)
    there = records(placed_on(source, saved), split="val")
    live = 0
    for one in look["latents"]:
        if one["latent"] not in there.latents:
            assert one["density"] == 0
            assert one["contexts"] == []
            continue
        live += 1
        expected = there[one["latent"]].as_plain(2)
        assert one["density"] == expected["density"]
        assert one["max"] == pytest.approx(expected["max"], rel=1e-5)
        for mine, theirs in zip(one["contexts"], expected["contexts"], strict=True):
            assert (mine["pieces"], mine["peak"]) == (theirs["pieces"], theirs["peak"])
            for a, b in zip(mine["values"], theirs["values"], strict=True):
                assert a == (b if b is None else pytest.approx(b, rel=1e-5))
    assert live > 5


def test_two_processes_see_together_what_one_sees(source, tmp_path, monkeypatch):
    source.prepare(splits=["val"])
    alone, parts = tmp_path / "alone", []
    alone.mkdir()
    validation = Validation(source, alone)
    validation.run(Features(WatchedText(source, validation.rows)))
    monkeypatch.setattr("callbacks.features.gather", lambda mine: [*parts, mine])
    validation.trainer.world_size, validation.trainer.default_root_dir = 2, str(tmp_path)
    validation.trainer.global_rank = 1
    second = Features(WatchedText(source, validation.rows))
    validation.run(second)
    assert not (tmp_path / FILE).exists()  # the first process writes
    parts.append(second._found)
    validation.trainer.global_rank = 0
    validation.run(Features(WatchedText(source, validation.rows)))
    assert (tmp_path / FILE).read_bytes() == (alone / FILE).read_bytes()


def test_a_run_that_comes_by_a_step_again_writes_it_once(source, tmp_path):
    source.prepare(splits=["val"])
    validation = Validation(source, tmp_path)
    callback = Features(WatchedText(source, validation.rows), latents=2)
    validation.run(callback)
    first = (tmp_path / FILE).read_bytes()
    validation.trainer.global_step = 9
    validation.run(callback)
    assert [look["step"] for look in json.loads((tmp_path / FILE).read_text())["looks"]] == [7, 9]
    validation.trainer.global_step = 7
    validation.run(callback)
    assert (tmp_path / FILE).read_bytes() == first
    (tmp_path / FILE).write_text("{")
    validation.run(callback)
    assert (tmp_path / FILE).read_bytes() == first


def test_the_report_tells_latents_by_their_looks(source, tmp_path):
    source.prepare(splits=["val"])
    validation = Validation(source, tmp_path)
    callback = Features(WatchedText(source, validation.rows), latents=3)
    validation.run(callback)
    validation.trainer.global_step, validation.module.tokens_seen = 9, 8192
    validation.run(callback)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    page = write_report(tmp_path).read_text()
    assert "How latents formed" in page
    assert page.count("After 4,096 tokens it") == page.count("After 8,192 tokens it") == 3


def test_columns_of_a_code_are_those_of_the_dense_one():
    f = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).relu()
    pattern = select_topk(f, k=4)
    sparse = SparseCode(pattern, f[pattern.rows, pattern.latents])
    wanted = torch.tensor([6, 0, 3])
    assert torch.equal(sparse.of(wanted), sparse.dense()[:, wanted])
    assert torch.equal(DenseCode(f).of(wanted), f[:, wanted])


def test_units_are_those_of_the_saved_sae(source):
    sae = make_sae(source)  # only its data
    x = torch.randn(9, sae.d_in, generator=torch.Generator().manual_seed(1))
    for settings in ({"architecture": "l1", "l1": 0.1}, {"architecture": "topk", "k": 3}):
        built: Any = build_dictionary({**settings, "dict_ratio": 2}, d_in=sae.d_in)
        code = built.encode(x * SCALE).detach() * built.units(SCALE)
        assert torch.allclose(code, built.folded(SCALE).encode(x), rtol=1e-4, atol=1e-5)
