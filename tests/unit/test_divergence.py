"""Training that goes wrong stops or warns by name, and its remedy works."""

import json
import logging
import math
import shlex

import numpy as np
import pytest
import torch

from conf.commandline import check_command_line
from sae.errors import ConfigError, DivergedError, StoreError
from sae.training.divergence import PATIENCE_STEPS, Watch, not_finite, state_of

pytestmark = pytest.mark.slow

WORLD = [
    "activations=superposition", "activations.d_in=8", "activations.num_features=16",
    "activations.active=2", "tokens=2048", "activations.val_tokens=256",
    "activations.test_tokens=256", "trainer.batch_size=32", "epochs=2", "eval=[core]",
    "logger=none", "trainer.precision=32-true", "trainer.log_every_steps=5",
    "trainer.checkpoint_every_steps=20", "trainer.validations=0",
]  # fmt: skip
STEPS = 128


def train(folder, *overrides, world=WORLD):
    from train import compose, train

    return train(compose([*world, *overrides]), folder)


def own(folder, rows, *overrides, run="run"):
    """Train on rows of one's own."""
    if rows is not None:
        np.save(folder / "rows.npy", rows)
    world = [word for word in WORLD if "activations" not in word and "tokens" not in word]
    words = ["activations=folder", f"activations.path={folder / 'rows.npy'}", "sae=topk", "k=2"]
    return train(folder / run, *words, *overrides, world=world)


# --- what is seen ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_found_by_name(bad):
    named = {"a": torch.full((3,), 3e38), "b": torch.tensor([0.0, bad, 1.0]), "c": torch.zeros(2)}
    assert not_finite(named) == "b"
    assert not_finite({"a": named["a"], "c": named["c"]}) is None  # though its square overflows


def test_parameters_gradients_and_moments_have_names():
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(layer.parameters())
    assert set(dict(state_of(layer, None))) == {"weight", "bias"}
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    optimizer.state[layer.weight]["exp_avg_sq"][0, 1] = math.inf
    found = dict(state_of(layer, optimizer))
    assert len(found) == 8
    assert not_finite(found) == "the optimizer's exp_avg_sq of weight"
    layer.weight.grad[0, 0] = math.nan
    assert not_finite(found) == "the gradient of weight"


def looks(watch, fvus, every=10, **more):
    given = {"silent_tokens": 0, "silent_after": 100, "may_stop": True} | more
    for i, fvu in enumerate(fvus, 1):
        watch.look(i * every, fvu=fvu, **given)


def test_a_large_fvu_stops_when_it_lasts_and_does_not_fall():
    long = PATIENCE_STEPS // 10
    with pytest.raises(DivergedError, match=f"step {PATIENCE_STEPS + 20}: FVU is 50"):
        looks(Watch(1000, 1, ""), [0.5, *[50.0] * (long + 1)])
    looks(Watch(1000, 1, ""), [0.5, *[50.0] * long])
    looks(Watch(1000, 1, ""), [0.5, *[50.0] * long, 0.5, *[50.0] * long])
    looks(Watch(1000, 1, ""), [1e6 * 0.9**i for i in range(200)])  # a slow start
    looks(Watch(1000, 1, ""), [50.0] * 100, may_stop=False)
    looks(Watch(1000, 1, ""), [math.nan] * 100)
    looks(Watch(100_000, 1, ""), [50.0] * 100)  # a share of a long run
    with pytest.raises(DivergedError):
        looks(Watch(100_000, 1, ""), [50.0] * 102)


def test_suspicion_ends_when_things_get_better():
    watch = Watch(1000, 1, "")
    for given, suspect in (({}, False), ({"fvu": 11.0}, True), ({}, False),
                           ({"silent_tokens": 100}, True), ({"silent_tokens": 99}, False),
                           ({"fvu": 11.0, "may_stop": False}, False)):  # fmt: skip
        usual = {"fvu": 0.5, "silent_tokens": 0, "silent_after": 100, "may_stop": True}
        watch.look(1, **(usual | given))
        assert (watch.suspect is not None) == suspect


# --- runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sae=topk", "k=2", "optimizer.lr=100"], "FVU|L0"),
        (["sae=l1", "l1=1e30"], "norm of the gradients"),  # clipped to 0: nothing was trained
        (["sae=l1", "l1=1e38"], "sparsity inf"),
        (["sae=l1", "target_l0=2", "optimizer.lr=100"], "L0|FVU|finite"),
    ],
)
def test_a_run_that_diverges_fails_by_name(tmp_path, words, named):
    with pytest.raises(DivergedError, match=named):
        train(tmp_path / "run", *words)
    assert not (tmp_path / "run" / "results.json").exists()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    if last.exists():
        assert torch.load(last)["global_step"] < STEPS


def test_silence_is_told_after_a_log_interval(tmp_path, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(DivergedError, match="latents are dead"):
        train(tmp_path / "run", "sae=tied", "optimizer.lr=100", "resample.dead_after_tokens=200")
    told = [record for record in caplog.records if "L0 is 0" in record.getMessage()]
    assert len(told) == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["sessions"][-1]["status"] == "failed"


@pytest.mark.parametrize("words", [["sae=topk", "k=2"], ["sae=l1", "l1=1"]])
def test_rows_that_are_all_equal_need_no_latent(tmp_path, words):
    """The decoder's bias is all of them; nothing is dead for a fault of training."""
    world = [word for word in WORLD if "activations" not in word and "tokens" not in word]
    np.save(tmp_path / "rows.npy", np.ones((2000, 8), np.float32))
    rows = ["activations=folder", f"activations.path={tmp_path / 'rows.npy'}", "resample=none"]
    results = train(tmp_path / "run", *words, *rows, world=world)
    assert results["core"]["metrics"]["fvu"]["value"] is None


def test_the_remedy_that_is_told_works(tmp_path, caplog):
    """Half a run, then a rate that is too high, then what the error says."""
    run = tmp_path / "my run"
    words = [*WORLD, "sae=topk", "k=2"]
    from train import compose
    from train import train as continue_run

    train(run, "sae=topk", "k=2", "epochs=1")
    file = run / "checkpoints" / "last.ckpt"
    good = file.read_bytes()
    high = compose([*words, "resume_with={optimizer.lr: 1e6, optimizer.beta1: 0}"])
    with pytest.raises(DivergedError) as caught:
        continue_run(high, run)
    assert file.read_bytes() == good
    command = str(caught.value).rpartition("python train.py ")[2]
    assert shlex.split(command)[1] == "resume_with={optimizer.lr: 0.001}"
    (config,) = check_command_line("train", shlex.split(command))
    assert config["epochs"] == 2
    results = continue_run(config, run, ["run_dir", "resume_with"])
    assert results["core"]["metrics"]["fvu"]["value"] < 1
    manifest = json.loads((run / "manifest.json").read_text())
    assert [session["resume_with"] for session in manifest["sessions"]] == [
        None,
        {"optimizer.lr": 1e6, "optimizer.beta1": 0.0},
        {"optimizer.lr": 1e-3, "optimizer.beta1": 0.0},
    ]
    group, *_ = torch.load(file)["optimizer_states"][0]["param_groups"]
    assert (group["initial_lr"], group["betas"]) == (1e-3, (0.0, 0.999))
    # the command that began it still continues it, and a finished run takes no more
    assert continue_run(compose([*words]), run)["core"] == results["core"]
    with pytest.raises(ConfigError, match="resume_with has no effect"):
        continue_run(compose([*words, "resume_with={optimizer.lr: 1e-5}"]), run)


def test_a_new_rate_is_that_of_every_parameter(tmp_path):
    """Fast biases keep their ratio."""
    from train import compose
    from train import train as continue_run

    words = [*WORLD, "sae=l1"]
    train(tmp_path, "sae=l1", "epochs=1")
    word = "resume_with={optimizer.lr: 2e-4, optimizer.eps: 1e-7}"
    continue_run(compose([*words, word]), tmp_path)
    groups = torch.load(tmp_path / "checkpoints" / "last.ckpt")["optimizer_states"][0][
        "param_groups"
    ]
    assert [group["initial_lr"] for group in groups] == pytest.approx([2e-4, 1e-3])
    assert {group["eps"] for group in groups} == {1e-7}


def test_a_rate_for_biases_needs_groups(tmp_path):
    from train import compose
    from train import train as continue_run

    words = [*WORLD, "sae=tied"]
    train(tmp_path, "sae=tied", "epochs=1")
    with pytest.raises(ConfigError, match="optimizer.bias_rate"):
        continue_run(compose([*words, "resume_with={optimizer.bias_rate: 2}"]), tmp_path)


@pytest.mark.parametrize(
    "value",
    ["{l1: 1e-3}", "{optimizer.lr: 0}", "{optimizer.lr: fast}", "{optimizer.name: adam}", "{}",
     "1e-4", "[optimizer.lr]", "{optimizer: {lr: 1}}", "{epochs: 9}"],
)  # fmt: skip
def test_only_settings_of_the_optimiser_may_change(tmp_path, value):
    from conf.resume import save_config
    from train import compose

    save_config(tmp_path, compose(WORLD))
    with pytest.raises(ConfigError, match="resume_with|optimizer.lr"):
        check_command_line("train", [f"run_dir={tmp_path}", f"resume_with={value}"])


@pytest.mark.parametrize("words", [[], ["-m", "seed=0,1"]])
def test_where_nothing_goes_on_resume_with_has_no_effect(tmp_path, words):
    where = f"sweep_dir={tmp_path}" if words else f"run_dir={tmp_path}"
    with pytest.raises(ConfigError, match="resume_with.* has no effect"):
        check_command_line("train", [*words, where, "resume_with={optimizer.lr: 1e-4}"])


# --- values ----------------------------------------------------------------------------------


def rows(seed=0):
    return np.random.default_rng(seed).standard_normal((2000, 8)).astype("f4")


def test_huge_values_come_before_training(tmp_path):
    with pytest.raises(StoreError, match="float32"):
        own(tmp_path, rows() * 1e25)
    with pytest.raises((StoreError, ConfigError), match="float32"):
        train(tmp_path / "noise", "sae=tied", "activations.noise=1e25")
    with pytest.raises((StoreError, ConfigError), match="float32"):
        train(tmp_path / "inf", "sae=tied", "activations.noise=1e39")
    for folder in ("run", "noise", "inf"):
        assert not (tmp_path / folder / "checkpoints").exists()


@pytest.mark.parametrize("cut", ["10", "null"])
def test_one_huge_row_is_told_before_training(tmp_path, caplog, cut):
    one = rows()
    one[7] *= 1e15
    with caplog.at_level(logging.WARNING):
        try:
            own(tmp_path, one, f"activations.max_norm={cut}")
        except DivergedError:
            assert cut == "null"
    first = caplog.records[0].getMessage()
    assert "max_norm" in first
    assert "times the median" in first


def test_a_nan_behind_known_statistics(tmp_path):
    """The file changed in its place, with its size and time."""
    import os

    own(tmp_path, rows(), "epochs=1")
    file = tmp_path / "rows.npy"
    times = file.stat().st_mtime_ns
    bad = rows()
    bad[5, 3] = math.nan
    np.save(file, bad)
    os.utime(file, ns=(times, times))
    with pytest.raises(StoreError, match=r"rows\.npy holds NaN .* row 5"):
        own(tmp_path, None, "epochs=1", run="other")
