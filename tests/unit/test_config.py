"""The command line: what it accepts, and what it says when it does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conf.commandline import as_sweep, check_command_line
from conf.compose import compose_job, jobs, names_of, parse, sweep_jobs
from conf.options import FOLDER, content, options
from conf.schema import check
from conf.settings import PARTS, SHORT, part_of
from sae.errors import ConfigError

ROOT = Path(__file__).parents[2]


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
        "start_bias": None, "target_l0": None, "sparsity_warmup_tokens": "5%",
    }  # fmt: skip
    assert config["seed"] == 3


def test_lists_where_the_design_allows_them():
    config = composed("layer=[2,4]", "site=[resid,mlp]", "harvest_only=true")
    assert config["activations"]["layer"] == [2, 4]
    assert config["activations"]["site"] == ["resid", "mlp"]
    assert composed("l1=[1e-3,2e-3]")["sae"]["l1"] == [1e-3, 2e-3]


@pytest.mark.parametrize(
    ("words", "sweep"),
    [
        ("l1=1e-3", "l1=1e-3"),
        ("l1=[1e-3,1e-2] run_dir=x", "-m sweep_dir=x l1=0.001,0.01 launcher=ensemble"),
        ("sae=topk k=[8,16] seed=[0,1]", "-m sae=topk k=8,16 seed=0,1 launcher=ensemble"),
        ("l1=[1e-3,1e-2] launcher=joblib", "-m launcher=joblib l1=0.001,0.01"),
        ("-m l1=[1e-3,1e-2]", "-m l1=[1e-3,1e-2]"),
        ("layer=[2,4] harvest_only=true", "layer=[2,4] harvest_only=true"),
        ("l1=[]", "l1=[]"),
        ("l1=[1e-3,1e-2] --cfg job", "l1=[1e-3,1e-2] --cfg job"),
    ],
)
def test_a_list_stands_for_a_sweep_from_one_read(words, sweep):
    assert as_sweep(words.split()) == sweep.split()
    if "[]" not in words and not words.startswith("-m"):
        check_command_line("train", sweep.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["layr=4"], "layr is not known. Did you mean layer"),
        (["sae.ll1=4"], "sae.ll1 is not known. Did you mean sae.l1"),
        (["trainer.batchsize=4"], "Did you mean trainer.batch_size"),
        (["sae=topkk"], "Available options in 'sae': .*batch_topk .* tied topk"),
        (["layer=abc"], "layer=abc must be a whole number of at least 0"),
        (["layer=2.5"], "layer=2.5 must be a whole number"),
        (["layer=-1"], "layer=-1 must be a whole number of at least 0"),
        (["layer=true"], "layer=true must be"),
        (["layer=[]"], r"layer=\[\] must be"),
        (["l1=-5"], "l1=-5 must be a number of at least 0"),
        (["l1=inf"], "l1=inf must be"),
        (["dict_ratio=0"], "dict_ratio=0 must be a number above 0"),
        (["tokens=1.5"], "tokens=1.5 must be a whole number"),
        (["tokens=[1,2]"], "tokens=.* must be a whole number of at least 1"),
        (["site=residual"], "site=residual must be one of resid, mlp"),
        (["optimizer.lr=0"], "optimizer.lr=0 must be a number above 0"),
        (["optimizer.name=sgd"], "must be one of adam, authors_adam"),
        (["trainer.precision=fp8"], "must be one of auto"),
        (["logger.wandb=on"], "must be one of auto, online"),
        (["harvest_only=1"], "harvest_only=1 must be true or false"),
        (["sae=topk", "l1=0.5"], "l1=0.5 has no effect with sae=topk"),
        (["k=32"], "k=32 has no effect with sae=tied"),
        (["activations=folder", "activations.path=x", "layer=3"], "layer=3 has no effect"),
        (["activations=folder", "activations.path=x", "lm=gpt2"], "lm has no effect"),
        (["activations=folder"], "activations.path has no value"),
        (["activations=superposition", "lm=gpt2"], "lm has no effect with activations=superposit"),
        (["activations=superposition", "corpus=news"], "corpus has no effect"),
        (["activations=superposition", "layer=3"], "layer=3 has no effect"),
        (["activations=superposition", "site=mlp"], "site=mlp has no effect"),
        (["activations=superposition", "activations.branch=both"], "one of uncorrelated, correl"),
        (["lm=folder"], "lm.path has no value"),
        (["l1=1e-3,1e-2"], "Sweep over them with -m"),
        (["l1"], "Write key=value"),
        (["l1=1e-3,"], r"^l1=1e-3, cannot be read\. A list must not end in a comma"),
        (["l1=interval(0,1)", "-m"], "List the values: key=a,b,c"),
        (["resample.at_tokens=20%"], r"in quotes .*: 'resample.at_tokens=\[20%\]'"),
        (["resample.at_tokens=[20]x"], "cannot be read"),
        (["resample.at_tokens=[abc]"], "at_tokens=abc must be a number of tokens"),
        (["resample.strategy=best"], "must be one of drawn, worst_example"),
        (["sae=topk", "sae.frozen_decoder=1"], "frozen_decoder=1 must be true or false"),
        (["sae.frozen_decoder=true"], "sae.frozen_decoder is not known"),
        (["resample.dead_after_tokens=null"], r"tokens=null must be a number of tokens \(2000"),
        (["optimizer.warmup_tokens=null"], "must be a number of tokens .* or a share of the run"),
        (["optimizer.warmup_tokens=120%"], "must be a number of tokens"),
        (["optimizer=null"], "optimizer=null is not a choice. Choose one of adam, authors_adam"),
        (["callbacks=null"], "callbacks=null is not a choice. Choose one of default"),
        (["~callbacks"], "callbacks has no value. Choose callbacks=… from default"),
        (["eval=[]"], "eval has no value. Choose eval=… from .*core, .*downstream"),
        (["callbacks.downstream=null"], "~callbacks.downstream removes it"),
        (["callbacks.downstream.num_tokens=0.5"], "callbacks.downstream.num_tokens=0.5 must be"),
        (["eval.downstream.num_tokens=abc"], "eval.downstream.num_tokens=abc must be a whole"),
        (["activations.ctx=abc"], "activations.ctx=abc must be a whole number of at least 2"),
        (["activations.normalize=yes"], "must be one of spread, mean_square, none"),
        (["activations.special=none"], "must be one of drop, keep, all"),
        (["activations.max_norm=0"], "must be a number above 0, or null"),
        (
            ["activations=folder", "activations.path=x", "activations.special=drop"],
            "activations.special",
        ),
        (["activations.dtype=float64"], "must be one of float32, float16, bfloat16"),
        (["activations.val_fraction=1"], "must be a number of at least 0 and below 1"),
        (["activations.buffer_rows=null"], "buffer_rows=null must be a whole number"),
        (
            ["activations.kind=zarr"],
            "activations.kind=zarr is not known. Choose one of folder, lm, superp",
        ),
        (
            ["activations=folder", "activations.path=x", "activations.special=keep"],
            "activations.special is not known. There are: .*buffer_rows",
        ),
        (["activations=superposition", "activations.special=keep"], "There are: .*absorption"),
        (["eval=[core]", "eval.scr.seed=0"], "eval.scr is not known. There are: core"),
        (["eval.core.bootstrap.levle=0.9"], "eval.core.bootstrap.levle is not known. Did you mean"),
        (["lm.dtyp=float32"], "lm.dtyp is not known. Did you mean lm.dtype"),
        (["lm=tiny-llama", "lm.d_model=12"], "lm.d_model=12 must be a multiple of 8"),
        (["corpus=random_words", "corpus.words=0"], "corpus.words=0 must be a whole number of at"),
        (["+activations.foo=1"], "activations.foo is not known. There are: .*ctx"),
        (["sae.sparsity_warmup_tokens=x"], "must be a number of tokens"),
        (["sae.k=1.5", "sae=topk"], "sae.k=1.5 must be a whole number"),
        (["sae=gated", "sae.gate_trains_decoder=maybe"], "must be true or false"),
        (["sae=topk", "sae.multi_k=2"], "must be true or false"),
        (["optimizer.beta1=1"], "must be a number of at least 0 and below 1"),
        (["-m", "sweeper=optuna"], "sweeper=optuna has nothing to search. Give a range"),
        (["sweeper=optuna", "hydra.mode=MULTIRUN", "l1=interval(-1,1)"], "l1=-1.0 must be"),
        (["-m", "trainer=ddp", "l1=1,2"], "several processes, which a sweep .* cannot start"),
        (["trainer.devices=0"], "trainer.devices=0 must be a whole number of at least 1"),
        (["trainer.precision=16-mixed"], "must be one of auto, 32-true, bf16-mixed"),
        (["sweep_dir=x"], "sweep_dir has no effect on one run.* Give run_dir=… instead"),
        (["-m", "l1=1,2", "run_dir=x"], "run_dir has no effect on a sweep. Give sweep_dir=…"),
        (["sweep=l1", "run_dir=x"], "run_dir has no effect on a sweep"),
        (["hydra.mode=MULTIRUN", "run_dir=x"], "run_dir has no effect on a sweep"),
        (["name=don't"], "Write key=value"),
    ],
)
def test_mistakes_are_explained(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_command_line("train", overrides)


def test_a_setting_that_is_removed_has_its_default():
    config = composed("trainer=ddp", "~trainer.devices", "debug=tiny", "~activations.ctx")
    assert (config["trainer"]["devices"], config["activations"]["ctx"]) == (1, 128)


@pytest.mark.slow
def test_every_job_of_a_sweep_is_checked_before_it_starts():
    check_command_line("train", ["-m", "l1=1e-3,1e-2", "layer=2,4"])
    with pytest.raises(ConfigError, match="l1=-1 must"):
        check_command_line("train", ["-m", "l1=1e-3,-1"])
    assert jobs(parse(["l1=1,2", "layer=range(0,2)"])) == [
        ["l1=1", "layer=0"], ["l1=1", "layer=1"], ["l1=2", "layer=0"], ["l1=2", "layer=1"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "words"),
    [("train", ["layer=range(3,0)"]), ("train", ["-m", "layer=range(3,0)", "l1=1,2"]),
     ("evaluate", ["~eval=[1,2]", "lm=range(3,0)"])],
)  # fmt: skip
def test_a_range_without_values_is_named(program, words):
    with pytest.raises(ConfigError, match=r"range\(3,0\).* has no values"):
        check_command_line(program, words)


def test_swept_values_of_an_option_are_checked_too():
    overrides = parse(["layer=2", "l1=7"])
    assert sweep_jobs(overrides, {"l1": "1,2", "k": "3"}) == [["l1=7", "k=3", "layer=2"]]
    assert sweep_jobs(parse(["layer=2"]), {"l1": "1,2"}) == [
        ["l1=1", "layer=2"], ["l1=2", "layer=2"],
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="l1=0.0003 has no effect with sae=topk"):
        check_command_line("train", ["sweep=l1", "sae=topk"])


@pytest.mark.slow
def test_every_job_is_composed_once(monkeypatch):
    import conf.compose as module

    composed, real = [], module.compose
    monkeypatch.setattr(module, "compose", lambda *a, **k: composed.append(a) or real(*a, **k))
    module.compose_with_hydra.cache_clear()
    overrides = ["l1=1e-3,2e-3,3e-3", "layer=1,2"]
    check_command_line("train", ["-m", *overrides])
    for job in jobs(parse(overrides)):
        compose_job("train", job)["l1"] = 0  # whoever changes it changes a copy
        assert compose_job("train", job)["l1"] != 0
    assert len(composed) == 6


def test_a_file_may_set_keys_of_one_kind_of_activations_whatever_the_kind():
    words = ["debug=tiny", "activations=folder", "activations.path=x"]
    assert "ctx" not in composed(*words)["activations"]
    with pytest.raises(ConfigError, match="activations.ctx is not known"):
        composed(*words, "activations.ctx=8")


def test_null_is_no_number_in_a_training_and_means_as_in_the_run_in_an_evaluation():
    with pytest.raises(ConfigError, match="eval.downstream.num_tokens=null must be a whole"):
        composed("eval.downstream.num_tokens=null")
    words = ["run=x", "eval.downstream.num_tokens=null"]
    config = check(compose_job("evaluate", words), names_of(parse(words)))
    assert config["eval"]["downstream"]["num_tokens"] is None


def test_integral_floats_become_whole_numbers_everywhere():
    config = composed(
        "activations.buffer_rows=1e6", "activations.val_tokens=2e3",
        "callbacks.downstream.num_tokens=2e3", "eval.downstream.num_tokens=2e4",
        "eval.core.resamples=1e2", "resample.sample_tokens=1e3", "resample.at_tokens=[1e3,20%]",
    )  # fmt: skip
    assert repr(config["activations"]["buffer_rows"]) == "1000000"
    assert repr(config["activations"]["val_tokens"]) == "2000"
    assert repr(config["callbacks"]["downstream"]["num_tokens"]) == "2000"
    assert repr(config["eval"]["downstream"]["num_tokens"]) == "20000"
    assert repr(config["eval"]["core"]["bootstrap"]["num_resamples"]) == "100"
    assert repr(config["resample"]["sample_tokens"]) == "1000"
    assert repr(config["resample"]["at_tokens"]) == "[1000, '20%']"
    assert composed("~callbacks.downstream")["callbacks"].keys() == {
        "dead_features", "features", "reconstruction"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["-sc", "query=bash"], "layer="),
        (["--shell-completion", "install=bash"], "hydra_bash_completion"),
        (["--info"], "Hydra"),
        (["--info", "config"], "Config"),
        (["--hydra-help"], "Hydra"),
        (["--version"], "Hydra 1."),
        (["-cn", "evaluate", "--cfg", "job", "run=x"], "run: x"),
        (["--cfg", "job", "--resolve", "-p", "sae"], "tied"),
        (["-c", "job", "l1=0.5"], "l1: 0.5"),
    ],
)
def test_hydras_own_flags_pass_through(flags, says):
    result = subprocess.run(
        [sys.executable, "train.py", *flags], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"COMP_LINE": "python train.py lay", "COMP_POINT": "19"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert says in result.stdout + result.stderr
    assert "ConfigError" not in result.stderr


def yamls(group):
    return sorted(path.stem for path in (FOLDER / group).glob("*.yaml"))


@pytest.mark.slow
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
        f"{group}.{key}=a/b" for key, value in node.items() if value == "???" and key != "path"
    ]
    composed(f"{group}={option}", *path, *missing)


def test_no_group_bears_the_name_of_a_short_override():
    groups = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert not groups & {*SHORT, "run_dir", "sweep_dir"}


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


SLOW = "{'torchmetrics', 'lightning', 'transformers', 'sklearn'} & {*sys.modules}"


def test_a_mistake_in_an_evaluation_waits_for_no_large_library():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['evaluate.py', 'run=x', 'eval=[core]', 'eval.core.bogus=1']\n"
        "try: runpy.run_path('evaluate.py', run_name='__main__')\n"
        "except SystemExit as e: assert e.code == 1, e.code\n"
        f"assert not {SLOW}, {SLOW}"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "eval.core.bogus is not known" in result.stderr


@pytest.mark.slow
def test_no_evaluation_imports_a_large_library_before_it_measures():
    found = f"[EVALS.find(name) for name in {options('eval')}]"
    code = f"import sys; from sae.evals import EVALS; {found}; assert not {SLOW}, {SLOW}"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_errors_come_as_one_line_without_traceback():
    result = subprocess.run(
        [sys.executable, "train.py", "layr=4"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stderr.startswith("ConfigError: layr is not known. Did you mean layer?")
    assert len(result.stderr.splitlines()) == 1


def written(group, option):
    """What a yaml file sets by itself, without what it interpolates."""
    node = content(group, option)
    return {key: value for key, value in node.items() if "${" not in str(value)}


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group in PARTS for name in options(group) if group != "callbacks"],
)
def test_no_yaml_repeats_a_default(group, name):
    """The class beside the part has it, and nothing else."""
    node = content(group, name)
    settings, names = part_of(f"eval.{name}" if group == "eval" else group, node)
    defaults = {key: field.get_default() for key, field in settings.model_fields.items()}
    own = {key: value for key, value in written(group, name).items() if key in defaults}
    names = (*names, "name")  # adam is both
    assert [key for key, value in own.items() if key not in names and value == defaults[key]] == []
    assert set(node) - {"defaults", *names} <= set(defaults)


def test_a_null_that_nobody_gave_is_the_default_and_a_given_one_is_passed():
    assert composed("sae=topk")["sae"]["k"] == 64
    assert composed("sae=pca")["sae"]["k"] == 64
    for words in (["sae=pca", "k=null"], ["sae=pca", "sae.k=null"]):
        config = composed(*words)
        assert (config["sae"]["k"], config["k"]) == (None, None)
    with pytest.raises(ConfigError, match="k=null must be a whole number"):
        composed("sae=topk", "k=null")


def test_the_top_level_shows_the_values_that_are_read():
    config = composed("sae=topk", "sae.k=5")
    assert {name: config[name] for name in SHORT} == {
        "layer": 4, "site": "resid", "target": None, "l1": None, "k": 5, "target_l0": None,
        "dict_ratio": 8.0, "tokens": 1_000_000,
    }  # fmt: skip


def test_nested_settings_of_evaluations_need_no_plus():
    config = composed("eval.core.bootstrap.level=0.9")
    assert config["eval"]["core"]["bootstrap"] == {"num_resamples": 1000, "seed": 0, "level": 0.9}
    (config,) = check_command_line("evaluate", ["run=x", "eval.core.bootstrap.level=0.9"])
    assert config["eval"] == {"core": {"bootstrap": {"level": 0.9}}, "downstream": {}}
    assert (config["lm"], config["corpus"]) == (None, None)


@pytest.mark.slow
def test_the_set_for_tables_has_every_control_of_every_layer():
    small = ["experiment=features/set", "layer=4,9", "tokens=8192"]
    every = check_command_line("train", small)
    assert len(every) == 2 * 13
    at_9 = [job for job in every if job["activations"]["layer"] == 9]
    trained = [job for job in at_9 if job["sae"]["architecture"] == "topk"]
    of_lm = [job for job in trained if not job["lm"].get("random_weights")]
    frozen = [job for job in of_lm if job["sae"]["frozen_decoder"]]
    assert len(trained) - len(of_lm) == len(frozen) == 1
    assert [job["seed"] for job in of_lm if job not in frozen] == [0, 1, 2]
    bases = [(job["sae"]["architecture"], job["sae"]["k"]) for job in at_9 if job not in trained]
    assert sorted(bases, key=str) == sorted(
        [(name, k) for name in ("neurons", "pca", "ica", "random") for k in (None, 32)], key=str
    )
    assert {job["sae"]["k"] for job in trained} == {32}
    chosen = ["experiment/features/member=pca,topk_1", "layer=4"]
    assert len(check_command_line("train", [*small, *chosen])) == 2
    with pytest.raises(ConfigError, match="features/member=none is not known"):
        check_command_line("train", [*small, "experiment/features/member=none"])
