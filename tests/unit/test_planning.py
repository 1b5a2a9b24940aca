"""The planner against independent counts: of PyTorch, the disk, the data module, the system."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from _architectures import CASES, config_of
from _families import EVERY

from conf.commandline import check_command_line, resolve
from conf.compose import compose_job, names_of, parse
from conf.options import FOLDER
from conf.schema import check
from sae.errors import ConfigError

ROOT = Path(__file__).parents[2]
GIGA = 10**9


def composed(*overrides):
    config = check(compose_job("train", overrides), names_of(parse(overrides)))
    resolve([config])
    return config


def planned(*overrides, **options):
    from sae.planning import plan_runs

    return {stage.name: stage for stage in plan_runs([composed(*overrides)], **options).stages}


@pytest.mark.parametrize("family", EVERY)
def test_sizes_are_those_of_the_lm(family, tiny_source):
    from sae.types import Point

    sizes, lm = tiny_source(family).sizes(), tiny_source(family).load()
    assert sizes.parameters == sum(p.numel() for p in lm.model.parameters())
    for site in lm.family.sites:
        assert sizes.width(Point(site, 1)) == lm.width(Point(site, 1))


@pytest.mark.parametrize("word", sorted(CASES))
def test_trained_numbers_are_those_of_the_dictionary(word):
    from sae.dictionaries import build_dictionary
    from sae.planning.costs import parameters

    config = config_of(word)
    dictionary = build_dictionary(config, d_in=32)
    assert parameters(config, d_in=32) == sum(p.numel() for p in dictionary.parameters())


def test_trained_numbers_of_transcoders_and_crosscoders():
    """Counted by hand: of one matrix a side, their biases, and a skip connection."""
    from sae.planning.costs import parameters

    config = {"architecture": "l1", "dict_ratio": 2, "l1": 1e-3, "skip": True}
    assert parameters(config, d_in=6, d_out=4) == 12 * (6 + 4) + 12 + 4 + 6 * 4
    config = {"architecture": "crosscoder", "dict_ratio": 2, "l1": 1e-3}
    assert parameters(config, d_in=10, widths=(5, 5)) == 2 * 10 * 10 + 10 + 10


@pytest.mark.slow
def test_cache_bytes_and_steps_are_those_of_a_real_harvest(cache):
    from sae.activations.from_config import build_source
    from sae.training.from_config import build_data

    overrides = ["debug=tiny", "site=mlp", "activations.ctx=24", "tokens=20000"]
    before, config = planned(*overrides), composed(*overrides)
    assert before["harvest"].found == "0 of 3 arrays cached"
    source = build_source(config["activations"], config["lm"], config["corpus"])
    source.prepare()
    chunks = sum(f.stat().st_size for f in cache.rglob("c/*/*") if f.is_file())
    assert before["harvest"].disk == chunks
    everything = sum(f.stat().st_size for f in cache.rglob("*") if f.is_file())
    assert before["harvest"].disk == pytest.approx(everything, rel=0.05)  # json beside the chunks
    steps = build_data(config, source).steps
    assert steps <= before["train"].steps <= 1.01 * steps  # rows that do not count are counted
    after = planned(*overrides)
    assert after["harvest"].found == "3 of 3 arrays cached"
    assert after["harvest"].disk == 0


@pytest.mark.slow
def test_a_half_finished_harvest_needs_only_the_rest(cache):
    from sae.activations.from_config import lm_activations
    from sae.types import Point

    overrides = ["debug=tiny", "tokens=20000"]
    config = composed(*overrides)
    source = lm_activations(
        config["lm"], config["corpus"], Point("resid", 1), config["activations"]
    )
    whole = planned(*overrides)["harvest"].disk
    source.prepare()
    folder = source.specs["train"].folder
    (folder / "partial").mkdir()
    (folder / "activations" / "resid.1").rename(folder / "partial" / "resid.1")
    assert 0 == planned(*overrides)["harvest"].disk < whole


@pytest.mark.slow
def test_jobs_and_lists_add_up_and_share_the_harvest():
    from sae.planning import plan_runs

    one = planned("debug=tiny", "layer=1")
    listed = plan_runs([composed("debug=tiny", "layer=[0,2]", "seed=[0,1]")])
    jobs = [composed("debug=tiny", f"layer={i}", f"seed={j}") for i in (0, 2) for j in (0, 1)]
    for plan in (listed, plan_runs(jobs), plan_runs(jobs, together=True)):
        _, harvest, train, _ = plan.stages
        assert plan.members == 4
        assert train.steps == 4 * one["train"].steps
        assert harvest.disk < 2 * one["harvest"].disk  # tokens are kept once
        assert harvest.found == "0 of 6 arrays cached"  # two points, three splits
    apart, shared = (plan_runs(jobs, together=word).stages[2].memory for word in (False, True))
    assert shared["dictionary"] == 2 * apart["dictionary"]
    assert shared["blocks"] == apart["blocks"]


def test_streaming_writes_tokens_only():
    cached, streamed = planned("debug=tiny"), planned("debug=tiny", "activations.stream=true")
    assert 0 < streamed["harvest"].disk < 0.2 * cached["harvest"].disk


def test_own_activations_need_no_lm(tmp_path):
    torch.save(torch.randn(1000, 8), tmp_path / "x.pt")
    found = planned("activations=folder", f"activations.path={tmp_path}", "trainer.batch_size=50")
    assert found["train"].steps == 3 * 850 // 50
    assert found["harvest"].disk == found["fetch"].disk == 0


def test_a_synthetic_world_needs_no_lm_and_no_disk(cache):
    found = planned("activations=superposition", "tokens=10000", "trainer.batch_size=50")
    assert found["train"].steps == 3 * 10000 // 50
    assert found["train"].peak > 0
    assert found["harvest"].disk == found["fetch"].disk == 0
    assert not cache.exists(), "nothing is drawn for a plan"


def test_the_default_lm_is_planned_before_it_is_there(cache):
    stages = planned("layer=4")
    assert stages["fetch"].disk == pytest.approx(92.9e6 + 10.5e6 + 2 * 134.5e6, rel=0.01)
    assert stages["harvest"].disk == pytest.approx(1.33e9, rel=0.02)
    assert not cache.exists(), "a plan writes nothing"


def test_what_is_unknown_is_not_invented(capsys):
    from sae.planning import Machine, plan_runs, print_plan

    config = composed("layer=4")
    config["lm"]["architecture"] = None
    plan = plan_runs([config])
    train = plan.stages[2]
    assert (train.steps, train.peak) == (None, None)
    plan.check_fits(0, plan.disk)  # what is not known is no reason to refuse
    print_plan(plan, Machine.here("cpu"))
    assert "?: unknown until the LM is fetched" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "memory", "disk", "message"),
    [
        ([], 99 * GIGA, GIGA, r"needs 1\.7 GB of disk in .* 1\.0 GB are free there.*tokens=…"),
        ([], 99 * GIGA, GIGA, r"activations\.stream=true \(no cache\)"),
        (["dict_ratio=512"], 4 * GIGA, 99 * GIGA,
         r"4\.0 GB are available.*Make smaller: dict_ratio"),
        (["tokens=9e6", "activations.buffer_rows=4e6"], 4 * GIGA, 99 * GIGA,
         r"to train \(the program .*blocks 9\..*Make smaller: activations\.buffer_rows"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_fit_says_what_to_change(overrides, memory, disk, message):
    from sae.planning import plan_runs

    with pytest.raises(ConfigError, match=message):
        plan_runs([composed("layer=4", *overrides)]).check_fits(memory, disk)


def test_a_normal_run_refuses_before_the_harvest(cache, tmp_path, monkeypatch):
    import sae.planning.plan
    from train import harvest, train

    monkeypatch.setattr(sae.planning.plan, "free_disk", lambda folder: 1000)
    run_dir = tmp_path / "run"
    with pytest.raises(ConfigError, match="0.0 MB are free there"):
        train(composed("debug=tiny"), run_dir)
    with pytest.raises(ConfigError, match="0.0 MB are free there"):
        harvest(composed("debug=tiny", "harvest_only=true"))
    assert not run_dir.exists()
    assert not cache.exists()


@pytest.mark.slow
def test_the_memory_estimate_is_near_that_of_a_real_run(tmp_path):
    overrides = [
        "debug=tiny", "epochs=1", "dict_ratio=512", "~callbacks.downstream", "eval=[core]",
        "resample=none",
        f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from train import compose, train\n"
        "config = compose(sys.argv[1:])\n"
        "from sae.planning import plan_runs\n"
        "plan = plan_runs([config])\n"
        "train(config, Path(config['run_dir']))\n"
        # of this process alone: `ru_maxrss` begins with what its parent held
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "held = int(status['VmHWM'].split()[0]) * 1024\n"
        "print(json.dumps([held, plan.largest.peak]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *overrides],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    held, estimate = json.loads(result.stdout.splitlines()[-1])
    assert estimate == pytest.approx(held, rel=0.3)


@pytest.mark.slow
def test_plan_prints_and_starts_nothing(cache, tmp_path, monkeypatch, capsys):
    from conf.commandline import run_program

    folder = tmp_path / "folder"
    for words in (
        ["run_dir={}"], ["-m", "l1=1e-3,1e-2", "sweep_dir={}"], ["l1=[1e-3,1e-2]", "run_dir={}"],
    ):  # fmt: skip
        words = [word.format(folder) for word in words]
        monkeypatch.setattr(sys, "argv", ["train.py", *words, "plan=true", "debug=tiny"])
        run_program("train", lambda: pytest.fail("it started"))
        shown = capsys.readouterr().out
        assert "nothing was started" in shown
    assert not folder.exists()
    assert not cache.exists()
    with pytest.raises(ConfigError, match="plan=7 must be true or false"):
        check_command_line("train", ["plan=7"])


def test_what_does_not_fit_is_said_under_the_plan(capsys, monkeypatch):
    from sae.language.sources import LMSource
    from sae.planning import Machine, plan_runs, print_plan

    monkeypatch.setattr(LMSource, "load", lambda *_: pytest.fail("it was loaded"))
    print_plan(plan_runs([composed("debug=tiny")]), Machine("cpu", memory=1000))
    assert "It does not fit" in capsys.readouterr().out


@pytest.mark.real_lm
def test_the_sizes_in_the_yaml_are_those_of_the_fetched_lm(real_lm):
    from sae.dtypes import resolve_lm
    from sae.language import LMSource
    from sae.language.sizes import sizes_of

    config = yaml.safe_load((FOLDER / "lm" / "smollm2-135m.yaml").read_text())
    config = resolve_lm(config, "cpu")
    assert sizes_of(real_lm.model.config) == LMSource.from_config(config).sizes()
    from transformers import AutoConfig

    assert sizes_of(AutoConfig.for_model(**config["architecture"])) == sizes_of(
        real_lm.model.config
    )
