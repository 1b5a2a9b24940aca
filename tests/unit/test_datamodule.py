"""The data module: order, mixing, resume by seeking, ranks, the thread, and Lightning itself."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from sae.activations import order as order_module
from sae.activations import rows as rows_module
from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.activations.order import ShuffledOrder, prefetch, shuffled_batches
from sae.errors import ConfigError, StoreError

ROWS, D_IN = 1000, 4


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(rows_module, "ROWS_PER_CHUNK", 64)


def numbered(rows=ROWS):
    """Row i is [i, 1, 1, 1], so that a batch says which rows it holds."""
    x = torch.ones(rows, D_IN)
    x[:, 0] = torch.arange(rows)
    return x


def make(rows=ROWS, **options):
    source = TensorActivations(numbered(rows), val_fraction=0.0, test_fraction=0.0)
    values = {"batch_size": 30, "buffer_rows": 256, "normalize": "none", "seed": 3} | options
    return ActivationDataModule(source, **values)


def at(data, step, rank=0, world_size=1):
    """Pretend that a trainer has taken `step` steps, as one of several processes."""
    data.trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=world_size, accumulate_grad_batches=1
    )
    return data


def ids(batches):
    return [batch[:, 0].long().tolist() for batch in batches]


def test_every_row_comes_once_an_epoch_and_batches_run_over_its_end():
    data = make(epochs=3)
    batches = ids(data.train_dataloader())
    assert data.steps == len(batches) == len(data.train_dataloader()) == 100
    assert {len(batch) for batch in batches} == {30}
    stream = sum(batches, [])
    epochs = [stream[i : i + ROWS] for i in range(0, 3 * ROWS, ROWS)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(ROWS))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_last_incomplete_batch_of_all_is_dropped():
    data = make(epochs=1)
    assert len(ids(data.train_dataloader())) == data.steps == 33


def test_batches_mix_many_contexts():
    data = make(rows=8000, buffer_rows=2048, batch_size=256)
    contexts = [len({row // 8 for row in batch}) for batch in ids(data.train_dataloader())]
    assert min(contexts) > 150  # 256 of 2,048 rows of 256 contexts: 168 expected
    chunks = [{row // 64 for row in batch} for batch in ids(data.train_dataloader())]
    assert min(map(len, chunks)) == 32 or min(map(len, chunks)) > 25


def test_the_order_depends_on_seed_and_epoch_alone():
    expected = ids(make().train_dataloader())
    assert ids(make().train_dataloader()) == expected
    assert ids(make(read_ahead=False).train_dataloader()) == expected
    assert ids(make(epochs=2).train_dataloader())[:33] == expected
    assert ids(make(seed=4).train_dataloader()) != expected
    assert sum(ids(make(batch_size=10).train_dataloader()), [])[:990] == sum(expected, [])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_see_slices_of_what_one_process_sees(world_size):
    expected = ids(make(epochs=2).train_dataloader())
    ranks = [
        ids(at(make(epochs=2), 0, rank, world_size).train_dataloader())
        for rank in range(world_size)
    ]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == expected


@pytest.mark.parametrize("step", [0, 1, 8, 9, 33, 34, 65, 66])
@pytest.mark.parametrize("rank", [0, 1])
def test_any_step_is_reached_directly(step, rank):
    expected = ids(at(make(epochs=2), 0, rank, 2).train_dataloader())
    assert ids(at(make(epochs=2), step, rank, 2).train_dataloader()) == expected[step:]


def test_seeking_reads_only_the_blocks_needed():
    class Counting:
        def __init__(self, rows):
            self._rows, self.reads = rows, 0

        def __getattr__(self, name):
            return getattr(self._rows, name)

        def read(self, i):
            self.reads += 1
            return self._rows.read(i)

    rows = Counting(make().rows("train"))
    order = ShuffledOrder(rows, seed=0, buffer_rows=256)
    batches = shuffled_batches(rows, order, batch_size=10, start_step=99 * 100 + 80,
                               stop_step=99 * 100 + 81, scale=1.0)  # fmt: skip
    assert len(list(batches)) == 1
    assert rows.reads <= 4


def test_scale_and_mean():
    x = torch.randn(ROWS, D_IN, dtype=torch.float64) * 7 + 3
    source = TensorActivations(x)
    data = ActivationDataModule(source, batch_size=900, seed=0, normalize="mean_square")
    batch = next(iter(data.train_dataloader()))
    assert batch.dtype == torch.float32
    assert (batch.double() ** 2).sum(1).mean().item() == pytest.approx(D_IN, rel=1e-6)
    torch.testing.assert_close(data.mean.double(), x[:900].mean(0), rtol=1e-6, atol=0)
    held_out = torch.cat(list(data.val_dataloader()))
    torch.testing.assert_close(held_out, (x[900:950] * data.scale).float())
    ordinary = ActivationDataModule(source, batch_size=900)
    square = x[:900].norm(dim=1).median() ** 2 - x[:900].mean(0).square().sum()
    assert ordinary.scale * (square / D_IN).sqrt().item() == pytest.approx(0.5, rel=0.02)
    plain = ActivationDataModule(source, batch_size=900, normalize="none")
    assert plain.scale == 1.0
    assert data.d_in == D_IN


def test_held_out_rows_come_in_stored_order_and_ranks_share_them():
    source = TensorActivations(numbered(), val_fraction=0.2, test_fraction=0.1)
    data = ActivationDataModule(source, normalize="none")
    assert sum(ids(data.val_dataloader()), []) == list(range(700, 900))
    assert sum(ids(data.test_dataloader()), []) == list(range(900, 1000))
    assert len(data.val_dataloader()) == 4
    ranks = [ids(at(data, 0, rank, 3).val_dataloader()) for rank in range(3)]
    assert {len(rank) for rank in ranks} == {4}
    assert sorted(sum(sum(ranks, []), [])) == list(range(700, 900))


def test_sample_rows():
    data = make(rows=8000)
    sample = data.sample_rows(100, seed=5)
    assert sample.shape == (100, D_IN)
    assert torch.equal(sample, data.sample_rows(100, seed=5))
    assert not torch.equal(sample, data.sample_rows(100, seed=6))
    rows = sample[:, 0].long().tolist()
    assert len(set(rows)) == 100
    assert len({row // 64 for row in rows}) >= 7
    everything = data.sample_rows(10_000, seed=5)
    assert everything[:, 0].long().tolist() == list(range(8000))
    scaled = make(rows=8000, normalize="mean_square")
    torch.testing.assert_close(scaled.sample_rows(100, seed=5), sample * scaled.scale)


def test_sampled_rows_are_uniform():
    data = make(rows=640)
    counts = np.zeros(640)
    for seed in range(300):
        counts[data.sample_rows(64, seed)[:, 0].long().numpy()] += 1
    assert counts.sum() == 300 * 64
    assert counts.min() > 10  # 30 expected
    assert counts.max() < 55


# --- state --------------------------------------------------------------------------------------


def test_the_state_refuses_other_data():
    state = make().state_dict()
    make().load_state_dict(state)
    make(epochs=5).load_state_dict(state)
    with pytest.raises(StoreError, match="cannot continue: its activations had the key"):
        make(rows=999).load_state_dict(state)
    for changes in ({"batch_size": 31}, {"seed": 9}, {"buffer_rows": 64},
                    {"normalize": "mean_square"}):  # fmt: skip
        name, value = next(iter(changes.items()))
        with pytest.raises(ConfigError, match=f"{name} was {state[name]} and is {value} now"):
            make(**changes).load_state_dict(state)
    with pytest.raises(ConfigError, match="epochs was 5 and is 1"):
        make().load_state_dict(make(epochs=5).state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size=0"), ({"epochs": 0}, "epochs=0"), ({"seed": -1}, "seed=-1"),
     ({"buffer_rows": 0}, "buffer_rows=0")],
)  # fmt: skip
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_combinations_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="more than 1 epoch"):
        _ = make(batch_size=2000).steps
    with pytest.raises(ConfigError, match="multiple of 4"):
        at(make(), 0, 0, 4).train_dataloader()
    data = at(make(), 0)
    data.trainer.accumulate_grad_batches = 2
    with pytest.raises(ConfigError, match="Raise batch_size"):
        data.train_dataloader()


# --- the thread ---------------------------------------------------------------------------------


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_errors_in_the_thread_are_raised_in_the_consumer():
    def breaks():
        yield 1
        raise StoreError("file 7 is damaged")

    items = prefetch(breaks())
    assert next(items) == 1
    with pytest.raises(StoreError, match="file 7"):
        next(items)
    assert not prefetching()


def test_the_thread_is_one_item_ahead_and_no_more():
    made = []
    items = prefetch(made.append(i) or i for i in range(100))
    for expected in range(3):
        assert next(items) == expected
        time.sleep(0.05)
        assert len(made) == expected + 2
    items.close()
    assert not prefetching()


def test_the_thread_ends_when_the_batches_are_dropped():
    batches = iter(make().train_dataloader())
    next(batches)
    assert prefetching()
    del batches
    gc.collect()
    assert not prefetching()


@pytest.mark.slow
def test_a_program_that_stops_in_the_middle_ends_at_once():
    code = (
        "import itertools, sys, time\n"
        "from sae.activations.order import prefetch\n"
        "items = prefetch(time.sleep(0.01) or i for i in itertools.count())\n"
        "next(items)\n"
        "keep = [items]; keep.append(keep)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-X", "dev", "-c", code],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("read_ahead", [True, False])
def test_two_blocks_are_held_at_most(read_ahead, monkeypatch):
    load, live, most = order_module._load, set(), []

    def counting_load(rows, block, closed):
        data = load(rows, block, closed)
        live.add(block.start)
        weakref.finalize(data, live.remove, block.start)
        most.append(len(live))
        return data

    monkeypatch.setattr(order_module, "_load", counting_load)
    for _ in make(rows=8000, read_ahead=read_ahead).train_dataloader():
        pass
    assert len(most) == 32
    assert max(most) == 2


# --- Lightning ----------------------------------------------------------------------------------


class Recorder(lightning.LightningModule):
    """Remembers which rows it saw; its weight depends on their order."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], 0

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[:, 0].long().tolist())
        return (self.weight - batch[:, 0].mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class StopAt(lightning.Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def trainer(data, tmp_path, callbacks=(), **options):
    held_out = data.source._splits["val"].num_rows > 0
    return lightning.Trainer(
        limit_val_batches=1.0 if held_out else 0,
        max_steps=data.steps, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=list(callbacks), **options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 17, 34, 66])
def test_lightning_sees_one_epoch_and_resumes_at_the_global_step(stop, tmp_path):
    whole, data = Recorder(), make(epochs=2)
    fit = trainer(data, tmp_path)
    fit.fit(whole, data)
    assert fit.global_step == data.steps == len(whole.seen) == 66
    assert fit.current_epoch == 1

    first, path = Recorder(), tmp_path / "stopped.ckpt"
    with pytest.raises(SystemExit) if stop else pytest.raises(KeyboardInterrupt):
        trainer(data, tmp_path, [StopAt(stop, path)]).fit(first, make(epochs=2))
    assert not prefetching()
    second = Recorder()
    resumed = trainer(data, tmp_path)
    resumed.fit(second, make(epochs=2), ckpt_path=path, weights_only=True)
    assert first.seen + second.seen == whole.seen
    assert torch.equal(second.weight, whole.weight)


def test_lightning_validates_in_between(tmp_path):
    source = TensorActivations(numbered(), val_fraction=0.1, test_fraction=0.1)
    data = ActivationDataModule(source, batch_size=20, epochs=2)
    module = Recorder()
    trainer(data, tmp_path, val_check_interval=25, num_sanity_val_steps=0).fit(module, data)
    assert module.validated == 3 * 100


def test_lightning_refuses_to_resume_on_other_data(tmp_path):
    path = tmp_path / "stopped.ckpt"
    with pytest.raises(SystemExit):
        trainer(make(), tmp_path, [StopAt(3, path)]).fit(Recorder(), make())
    with pytest.raises(ConfigError, match="seed was 3 and is 4"):
        trainer(make(), tmp_path).fit(Recorder(), make(seed=4), ckpt_path=path, weights_only=True)
