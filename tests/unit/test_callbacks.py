"""Callbacks that measure: reconstruction and firing rates of a split."""

import pytest
import torch
from _fitted import ROWS, Module, Recorder, X, fit

from callbacks.dead_features import DeadFeatures
from callbacks.reconstruction import Reconstruction
from sae import functional
from sae.errors import ConfigError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning with torch 2.13
]


def test_reconstruction_is_that_of_the_whole_split():
    recorder = Recorder()
    fit([Reconstruction()], [recorder])
    expected = functional.reconstruction(X, X * 0.9)
    steps = {step for step, key in recorder.logged if key == "val/fvu"}
    assert len(steps) == 2
    for name in ("fvu", "mse", "cosine", "relative_bias"):
        for step in steps:
            assert recorder.logged[step, f"val/{name}"] == pytest.approx(expected[name].item())
    step = max(steps)
    assert recorder.logged[step, "val/l0"] == 1 + 1 / ROWS
    assert recorder.logged[step, "tokens"] == 6 * 8


def test_the_median_row_of_the_split_stands_beside_its_fvu():
    recorder = Recorder()
    fit([Reconstruction(lambda: X.mean(0))], [recorder])
    error, square = (0.1 * X).square().sum(1), (X - X.mean(0)).square().sum(1)
    medians = [v for (_, key), v in recorder.logged.items() if key == "val/fvu_median"]
    ratios = (error / square).sort().values  # of 48 rows, over batches of 7
    assert len(medians) == 2
    for found in medians:
        assert 0.994 * ratios[23] <= found <= 1.006 * ratios[24]
    assert medians[0] != pytest.approx(functional.fvu(X, 0.9 * X).item(), rel=0.02)


def test_the_median_is_of_what_the_sae_writes():
    recorder = Recorder()
    read = torch.full((4,), 99.0)
    fit([Reconstruction(lambda: torch.cat([read, X.mean(0)]))], [recorder])
    alone = Recorder()
    fit([Reconstruction(lambda: X.mean(0))], [alone])
    assert recorder.logged[5, "val/fvu_median"] == alone.logged[5, "val/fvu_median"]


def test_dead_silent_dense_and_the_histogram():
    recorder, callback = Recorder(), DeadFeatures()
    fit([callback], [recorder])
    dead = {step: v for (step, key), v in recorder.logged.items() if key == "train/dead"}
    assert dead == {1: 0.5, 3: 0.5, 5: 0.5}
    assert recorder.logged[5, "val/silent"] == 0.5
    assert recorder.logged[5, "val/dense"] == 0.25
    assert [step for step, _ in recorder.histograms] == [3, 6]
    assert callback.histogram == recorder.histograms[-1][1]
    assert callback.histogram["silent"] == 2
    assert sum(callback.histogram["latents"]) == 2


def test_a_module_without_counters_only_lacks_the_dead_share():
    class Plain(Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("tokens_seen", None)
            self.register_buffer("tokens_since_fired", None)

        def training_step(self, x, batch_idx):
            return (self.weight * x).square().mean()

    recorder = Recorder()
    fit([DeadFeatures()], [recorder], module=Plain())
    names = {key for _, key in recorder.logged}
    assert names == {"val/silent", "val/dense", "epoch"}


def test_a_validation_step_that_returns_nothing_is_an_error_that_says_what_to_return():
    class Silent(Module):
        def validation_step(self, x, batch_idx):
            return {"loss": 0.0}

    with pytest.raises(ConfigError, match="without 'x'.*x_hat"):
        fit([Reconstruction()], [], module=Silent())
