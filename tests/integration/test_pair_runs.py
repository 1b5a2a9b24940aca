"""Transcoders and crosscoders from the command line to the evaluation, stopped and continued."""

import json

import pandas as pd
import pytest
import torch

pytestmark = pytest.mark.slow

OVERRIDES = [
    "debug=tiny", "epochs=2", "trainer.validations=2", "trainer.checkpoint_every_steps=7",
    "resample.at_tokens=[40%,70%]", "resample.dead_after_tokens=256", "dict_ratio=8",
    "resample.sample_tokens=512", "callbacks.downstream.num_tokens=64", "eval.core.resamples=10",
    "eval.downstream.num_tokens=256", "eval.downstream.resamples=10",
]  # fmt: skip
KINDS = {
    "transcoder": ["sae=batch_topk", "k=4", "site=mlp_in", "target=mlp_out", "sae.skip=true"],
    "crosscoder": ["sae=crosscoder", "l1=3e-1", "layer=[0,2]", "optimizer.lr=1e-2"],
}


class Killed(Exception):
    """Stands for a process that dies in a step."""


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def kill_at(monkeypatch, step):
    from sae.training.module import SAEModule

    whole = SAEModule.optimizer_step

    def killed(self, *args, **kwargs):
        if self.global_step == step:
            raise Killed
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(SAEModule, "optimizer_step", killed)


def stopped_and_continued(words, folder, monkeypatch, steps):
    """Two run folders: one run in one go, and one killed at each of the steps."""
    from train import compose, train

    whole, broken = folder / "whole", folder / "broken"
    train(compose([*OVERRIDES, *words]), whole)
    for step in steps:
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                train(compose([*OVERRIDES, *words]), broken)
    train(compose([*OVERRIDES, *words]), broken)
    return whole, broken


def assert_same(whole, broken):
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (whole, broken)
    )
    assert one["state_dict"]["revived"] > 0, "the test must cross a resampling"
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(one[part], other[part]), part
    weights = [folder / "sae" / "sae.safetensors" for folder in (whole, broken)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_twice_equals_never_stopped(kind, tmp_path, monkeypatch):
    from evaluate import evaluate
    from sae import load

    whole, broken = stopped_and_continued(KINDS[kind], tmp_path, monkeypatch, (18, 45))
    assert_same(whole, broken)

    # evaluate.py rebuilds the joined source from the saved metadata
    results = json.loads((whole / "results.json").read_text())
    again = evaluate(whole, {"core": {}, "downstream": {}})
    for name, result in again.items():
        assert (whole / "evals" / f"{name}.json").is_file()
        for key, estimate in result.metrics.items():
            assert estimate.value == results[name]["metrics"][key]["value"], key
    point = {"transcoder": "mlp_in.1->mlp_out.1", "crosscoder": "resid.0+2"}[kind]
    assert again["core"].provenance["point"] == point
    assert 0 < results["core"]["metrics"]["fvu"]["value"] < 1.2

    table = pd.read_csv(whole / "metrics.csv")
    folded = load(whole)
    assert len(folded.metadata["scale"]) == 2
    # what is logged is what the saved SAE does, in the LM's units
    assert table["val/fvu"].dropna().iloc[-1] == pytest.approx(
        results["core"]["metrics"]["fvu"]["value"], rel=0.2
    )
    assert point in (whole / "report.html").read_text().replace("&gt;", ">")


def test_an_end_to_end_run_stopped_twice_equals_one_never_stopped(tmp_path, monkeypatch):
    words = ["experiment=e2e", "sae=topk", "k=2", "eval.core.resamples=5"]
    whole, broken = stopped_and_continued(words, tmp_path, monkeypatch, (18, 45))
    assert_same(whole, broken)
    table = pd.read_csv(whole / "metrics.csv")
    kl = table["train/loss_kl"].dropna().tolist()
    assert kl[-1] < 0.9 * kl[0]
    assert "train/loss_reconstruction" not in table
    results = json.loads((whole / "results.json").read_text())
    assert results["downstream"]["metrics"]["kl"]["value"] < kl[0]
    assert results["training"]["tokens"] == 15872


def test_the_plan_counts_every_point():
    from sae.planning import plan_runs
    from train import compose

    plans = {
        name: {stage.name: stage for stage in plan_runs([compose(["debug=tiny", *words])]).stages}
        for name, words in {**KINDS, "plain": ["sae=topk", "k=4"]}.items()
    }
    text = (8192 + 2048 + 4096) * 8
    plain = plans["plain"]["harvest"].disk
    assert plain > text
    for name in KINDS:  # two arrays each
        assert plans[name]["harvest"].disk == pytest.approx(2 * plain, rel=0.35)
        assert "6 arrays" in plans[name]["harvest"].found
