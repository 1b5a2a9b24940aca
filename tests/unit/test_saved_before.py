"""A run folder and an SAE saved by commit c6b32a2, before a rule said which rows count.

Made there by `python train.py debug=tiny logger.wandb=disabled run_dir=outputs/tiny`; the report
and Hydra's own files are left out.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from conf.resume import saved_config
from evaluate import evaluate
from sae.activations.from_config import build_source
from sae.artifacts import load
from sae.artifacts.placed import PlacedSAE, source_of
from sae.training.from_config import build_data

SAVED = Path(__file__).parents[1] / "fixtures" / "run_of_c6b32a2"


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(SAVED, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["", "sae"], ids=["run", "sae"])
def test_it_loads_and_evaluates_under_the_default_rule_and_says_so(run, folder):
    results = evaluate(run / folder, {"core": {}, "downstream": {}})
    before = json.loads((SAVED / "results.json").read_text())["core"]["metrics"]
    core = results["core"]
    for name, value in (("fvu", "fvu_all_rows"),):
        assert core.metrics[value].value == pytest.approx(before[name]["value"], rel=1e-5)
    counted = core.provenance["counted"]
    assert (counted["special"], counted["max_norm"]) == ("drop", 10)
    assert counted["median_of"] == "test"
    assert core.metrics["left_out"].value > 0  # pyright: ignore
    assert results["downstream"].metrics["ce_recovered_mean"].value is not None


def test_nothing_but_the_test_text_is_read(run):
    sae = load(run)
    source = source_of(sae)
    PlacedSAE(sae, source).prepare()
    assert source.split("test").num_rows > 0
    with pytest.raises(Exception, match="not harvested"):
        source.split("train")


def test_the_run_continues_with_every_row(run):
    config = saved_config(run)
    assert config is not None
    source = build_source(config["activations"], config["lm"], config["corpus"])
    assert source.rule.every_row
    source.prepare()
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    build_data(config, source).load_state_dict(state["ActivationDataModule"])
