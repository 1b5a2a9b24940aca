"""The command line: what it accepts, and what it says when it does not."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conf.commandline import FOLDER, check_command_line, compose_job, jobs, names_of, parse
from conf.runs import continued, save_config
from conf.schema import SHORT, check, register
from sae.errors import ConfigError

ROOT = Path(__file__).parents[2]
register()


def composed(*overrides):
    return check(compose_job("train", overrides), names_of(parse(overrides)))


def test_short_overrides_reach_their_nodes():
    config = composed("layer=7", "site=mlp", "l1=2e-3", "dict_ratio=4", "tokens=2e6", "seed=3")
    assert config["activations"]["layer"] == 7
    assert config["activations"]["site"] == "mlp"
    assert config["activations"]["tokens"] == 2_000_000
    assert isinstance(config["activations"]["tokens"], int)
    assert config["sae"] == {
        "architecture": "tied", "dict_ratio": 4.0, "l1": 2e-3, "centre": "none",
        "sparsity_warmup_tokens": "5%",
    }  # fmt: skip
    assert config["seed"] == 3


def test_lists_where_the_design_allows_them():
    config = composed("layer=[2,4]", "site=[resid,mlp]", "harvest_only=true")
    assert config["activations"]["layer"] == [2, 4]
    assert config["activations"]["site"] == ["resid", "mlp"]
    assert composed("l1=[1e-3,2e-3]")["sae"]["l1"] == [1e-3, 2e-3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layr=4"], "layr is not known. Did you mean layer"),
        (["sae.ll1=4"], "sae.ll1 is not known. Did you mean l1"),
        (["trainer.batchsize=4"], "Did you mean batch_size"),
        (["sae=topkk"], "Available options in 'sae': l1 tied topk"),
        (["layer=abc"], "layer=abc must be a whole number of at least 0, or a list"),
        (["layer=2.5"], "layer=2.5 must be a whole number"),
        (["layer=-1"], "layer=-1 must be a whole number of at least 0"),
        (["layer=true"], "layer=True must be"),
        (["layer=[]"], r"layer=\[\] must be"),
        (["l1=-5"], "l1=-5.0 must be a number of at least 0"),
        (["l1=inf"], "l1=inf must be"),
        (["dict_ratio=0"], "dict_ratio=0.0 must be a number above 0"),
        (["tokens=1.5"], "tokens=1.5 must be a whole number"),
        (["tokens=[1,2]"], "tokens=.* must be a whole number of at least 1"),
        (["site=residual"], "site=residual must be one of resid, mlp"),
        (["optimizer.lr=0"], "optimizer.lr=0.0 must be a number above 0"),
        (["optimizer.name=sgd"], "must be one of adam, authors_adam"),
        (["trainer.precision=fp8"], "must be one of auto"),
        (["logger.wandb=on"], "must be one of auto, online"),
        (["harvest_only=1"], "harvest_only=1 must be true or false"),
        (["sae=topk", "l1=0.5"], "l1=0.5 has no effect with sae=topk"),
        (["k=32"], "k=32 has no effect with sae=tied"),
        (["activations=folder", "activations.path=x", "layer=3"], "layer=3 has no effect"),
        (["activations=folder", "activations.path=x", "lm=gpt2"], "lm has no effect"),
        (["activations=folder"], "activations.path has no value"),
        (["lm=folder"], "lm.path has no value"),
        (["l1=1e-3,1e-2"], "Sweep over them with -m"),
        (["l1"], "Write key=value"),
        (["name=don't"], "Write key=value"),
    ],
)
def test_mistakes_are_explained(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_command_line("train", overrides)


def test_every_job_of_a_sweep_is_checked_before_it_starts():
    check_command_line("train", ["-m", "l1=1e-3,1e-2", "layer=2,4"])
    with pytest.raises(ConfigError, match="l1=-1.0"):
        check_command_line("train", ["-m", "l1=1e-3,-1"])
    assert jobs(parse(["l1=1,2", "layer=range(0,2)"])) == [
        ["l1=1", "layer=0"], ["l1=1", "layer=1"], ["l1=2", "layer=0"], ["l1=2", "layer=1"],
    ]  # fmt: skip


def yamls(group):
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "option"),
    [
        (group.name, option)
        for group in sorted(FOLDER.iterdir())
        if group.is_dir() and group.name not in ("hydra", "__pycache__", "eval")
        for option in yamls(group.name)
    ],
)
def test_every_option_composes_and_says_what_it_is(group, option):
    text = (FOLDER / group / f"{option}.yaml").read_text()
    first = next(line for line in text.splitlines() if not line.startswith("# @package"))
    assert first.startswith("# "), "line 1 says what the option is"
    node = yaml.safe_load(text) or {}
    path = ["lm.path=x"] if (group, option) == ("lm", "folder") else []
    if "path" in node and node["path"] == "???":
        path = [f"{group}.path=x"]
    missing = [
        f"{group}.{key}=x" for key, value in node.items() if value == "???" and key != "path"
    ]
    composed(f"{group}={option}", *path, *missing)


def test_no_group_bears_the_name_of_a_short_override():
    groups = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert not groups & {*SHORT, "run_dir", "sweep_dir"}


def test_help_names_every_short_override_with_its_default():
    help_text = (FOLDER / "train.yaml").read_text().partition("template:")[2]
    config = yaml.safe_load((FOLDER / "train.yaml").read_text())
    for name in SHORT:
        line = next(line for line in help_text.splitlines() if line.split()[:1] == [name])
        assert f"({config[name]}" in line, name


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
@pytest.mark.parametrize("flag", [["--help"], ["--cfg", "job"]])
def test_help_and_cfg_answer_without_loading_torch(program, flag):
    arguments = [*flag, *(["run=x"] if program == "evaluate.py" else [])]
    code = (
        f"import sys, runpy; sys.argv = ['{program}', *{arguments}]\n"
        f"try: runpy.run_path('{program}', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules, 'slow import'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "python" in result.stdout or "eval:" in result.stdout


def test_errors_come_as_one_line_without_traceback():
    result = subprocess.run(
        [sys.executable, "train.py", "layr=4"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stderr.startswith("ConfigError: layr is not known. Did you mean layer?")
    assert len(result.stderr.splitlines()) == 1


class TestContinued:
    def test_a_new_folder_takes_the_configuration_as_it_is(self, tmp_path):
        config = composed("layer=3")
        assert continued(tmp_path, config, ["layer"]) == config

    def test_the_saved_configuration_decides(self, tmp_path):
        save_config(tmp_path, composed("layer=3", "l1=5e-3"))
        assert continued(tmp_path, composed(), [])["layer"] == 3
        assert continued(tmp_path, composed("layer=3"), ["layer"])["l1"] == 5e-3

    @pytest.mark.parametrize(
        ("override", "given", "both"),
        [
            ("layer=4", "layer", "layer=3, but layer=4"),
            ("sae=topk", "sae", "sae.architecture=tied, but sae.architecture=topk"),
            ("trainer.batch_size=8", "trainer.batch_size", "trainer.batch_size=1024, but"),
            ("optimizer.lr=5", "optimizer.lr", "optimizer.lr=0.001, but optimizer.lr=5.0"),
        ],
    )
    def test_contradictions_show_both_values(self, tmp_path, override, given, both):
        save_config(tmp_path, composed("layer=3"))
        with pytest.raises(ConfigError, match=both):
            continued(tmp_path, composed(override), [given])

    def test_length_loggers_and_hardware_may_change(self, tmp_path):
        save_config(tmp_path, composed("layer=3"))
        overrides = ["epochs=9", "logger.wandb=disabled", "trainer.accelerator=cpu"]
        config = continued(tmp_path, composed(*overrides), names_of(parse(overrides)))
        assert (config["epochs"], config["layer"]) == (9, 3)
        assert config["logger"]["wandb"] == "disabled"
        assert config["trainer"]["accelerator"] == "cpu"
        with pytest.raises(ConfigError, match="not for less"):
            continued(tmp_path, composed("epochs=1"), ["epochs"])
