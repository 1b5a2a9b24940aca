"""Runs that cannot be, or that look impossible and can: an early clear error, or a result."""

import os
import pwd
import re
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from sae.errors import ArtifactError, ConfigError, SourceError

WORLD = [
    "activations=superposition", "activations.d_in=8", "activations.num_features=16",
    "activations.active=2", "tokens=2048", "activations.val_tokens=256",
    "activations.test_tokens=256", "trainer.batch_size=256", "epochs=1", "sae=topk", "k=2",
    "eval=[core]", "logger=none", "trainer.precision=32-true",
]  # fmt: skip
TINY = ["debug=tiny", "epochs=1", "tokens=4096", "sae=topk", "k=4"]


def train(folder, *overrides):
    from train import compose, train

    return train(compose(overrides), folder)


# --- numbers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dictionary_of_one_latent(tmp_path):
    """torchmetrics takes the axis from tensors of one entry."""
    results = train(tmp_path, *WORLD, "k=1", "dict_ratio=0.125")
    assert results["core"]["metrics"]["l0"]["value"] <= 1
    assert results["core"]["details"]["latents"]["firings"] == pytest.approx([
        256 * results["core"]["metrics"]["l0"]["value"]
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "sae", ["l1", "gated", "jumprelu", "batch_topk k=1", "lista", "kmeans", "random k=1"]
)
def test_a_dictionary_of_one_latent_of_any_kind(tmp_path, sae):
    words = [word for word in WORLD if not word.startswith(("sae=", "k="))]
    results = train(tmp_path, *words, *f"sae={sae}".split(), "dict_ratio=0.125")
    assert len(results["core"]["details"]["latents"]["firings"]) == 1


def of_equal_rows(folder, *more):
    np.save(folder / "a.npy", np.ones((2000, 8), "f4"))
    words = [w for w in WORLD if "activations" not in w and "tokens" not in w]
    words = [w for w in words if not w.startswith(("sae=", "k=", "epochs="))]
    return train(folder / "run", *words, "activations=folder", "epochs=2", *more,
                 f"activations.path={folder / 'a.npy'}")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["sae=topk", "k=2"], ["sae=l1", "resample=worst_example"], ["sae=gated"],
     ["sae=jumprelu"], ["sae=batch_topk", "k=2"], ["sae=kmeans"]],
    ids=" ".join,
)  # fmt: skip
def test_rows_that_are_all_equal_train(tmp_path, words):
    results = of_equal_rows(tmp_path, "dict_ratio=3", *words)
    assert results["core"]["metrics"]["fvu"]["value"] is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "– –" not in page  # there is no interval of FVU


@pytest.mark.slow
def test_contexts_too_short_for_a_prediction(tmp_path):
    from evaluate import evaluate

    for more in ([], ["activations.stream=true"]):
        with pytest.raises(ConfigError, match="activations.ctx=2 leaves no prediction"):
            train(tmp_path / "a", *TINY, "activations.ctx=2", *more)
    assert not (tmp_path / "a" / "checkpoints").exists()
    train(tmp_path / "c", *TINY, "activations.ctx=2", "eval=[core]", "~callbacks.downstream")
    with pytest.raises(ConfigError, match="activations.ctx=2 leaves no prediction"):
        evaluate(tmp_path / "c", {"core": {}, "downstream": {}}, device="cpu")
    assert evaluate(tmp_path / "c", {"core": {}}, device="cpu")["core"].tokens["vectors"] > 0
    results = train(tmp_path / "b", *TINY, "activations.ctx=2", "activations.keep_first=true")
    assert results["downstream"]["tokens"]["predictions"] > 0


@pytest.fixture
def overflowing(tiny_lm, tmp_path):
    """An LM whose last layer exceeds float16, and no layer below it."""
    import copy

    lm = tiny_lm("gpt2")
    model = copy.deepcopy(lm.model)
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight.mul_(1e7)
    model.save_pretrained(tmp_path / "lm")
    lm.tokenizer.save_pretrained(tmp_path / "lm")
    return [*TINY, "lm=folder", f"lm.path={tmp_path / 'lm'}", "layer=0"]


@pytest.mark.slow
def test_an_overflow_above_the_site_comes_before_training(overflowing, tmp_path):
    with pytest.raises(SourceError, match=r"layer 2 exceeds.*lm\.dtype=float32 or bfloat16"):
        train(tmp_path / "a", *overflowing, "lm.dtype=float16")
    assert not (tmp_path / "a" / "checkpoints").exists()
    results = train(tmp_path / "b", *overflowing, "lm.dtype=float32")
    assert results["downstream"]["metrics"]["ce_clean"]["value"] > 0


@pytest.mark.slow
def test_predictions_that_are_no_numbers_are_named_by_the_evaluation(overflowing, tmp_path):
    """Trained without the LM's predictions, then measured by them."""
    from evaluate import evaluate

    train(tmp_path / "run", *overflowing, "lm.dtype=float16", "~callbacks.downstream",
          "eval=[core]")  # fmt: skip
    with pytest.raises(SourceError, match="own predictions are NaN or infinite in float16"):
        evaluate(tmp_path / "run", {"downstream": {"num_tokens": 256}}, device="cpu")


# --- machines --------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_gpu_that_is_not_there(tmp_path, accelerator):
    with pytest.raises(ConfigError, match=f"trainer.accelerator={accelerator} asks for a GPU"):
        train(tmp_path, *WORLD, f"trainer.accelerator={accelerator}")


@pytest.fixture
def slurm(monkeypatch):
    """`slurm(step=True, …)` is a Slurm job of several tasks, with or without srun."""

    def job(tasks, step):
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        values = {"NTASKS": tasks, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_ID": 7,
                  "JOB_NAME": "mine", "NNODES": 1}  # fmt: skip
        for name, value in (values | ({"STEP_ID": 0} if step else {})).items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))

    return job


def test_one_process_in_a_job_of_several_tasks(tmp_path, slurm):
    """`python train.py` without srun is one process, whatever SLURM_NTASKS says."""
    slurm(4, step=False)
    assert train(tmp_path, *WORLD)["core"]["metrics"]["l0"]["value"] > 0


def test_more_processes_than_the_run_means(tmp_path, slurm):
    slurm(4, step=True)
    with pytest.raises(ConfigError, match="means 1 processes, but the cluster started 4"):
        train(tmp_path, *WORLD)


def test_without_a_home_the_cache_is_asked_for(monkeypatch):
    from sae.provenance import cache_dir

    for name in ("SAE_CACHE", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ConfigError, match="Set SAE_CACHE"):
        cache_dir()
    monkeypatch.setenv("SAE_CACHE", "~/cache")
    with pytest.raises(ConfigError, match="Set SAE_CACHE"):
        cache_dir()
    monkeypatch.setenv("SAE_CACHE", "/tmp/cache")
    assert str(cache_dir()) == "/tmp/cache"


def test_without_a_home_a_dtype_is_measured_each_time(monkeypatch):
    """`$SAE_CACHE` may be shared by several machines, so that the verdict lies elsewhere."""
    from sae import dtypes

    for name in ("HOME", "XDG_CACHE_HOME", dtypes.INHERITED):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(dtypes, "measure", lambda *given: 0.01)
    dtypes.speedup.cache_clear()
    try:
        assert dtypes.speedup("lm", "bfloat16") == 0.01
    finally:
        dtypes.speedup.cache_clear()


def test_a_cache_that_cannot_be_written(tmp_path):
    from sae.provenance import make_cache_dir

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Set SAE_CACHE"):
        make_cache_dir(tmp_path / "file" / "wheels")


@pytest.mark.slow
def test_a_locale_that_is_not_utf8(tmp_path):
    """The programs start again in UTF-8 mode, so that the folder has the name that was given."""
    environment = os.environ | {
        "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "SAE_CACHE": str(tmp_path),
    }  # fmt: skip

    def run(*words):
        result = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, timeout=240
        )
        assert result.returncode == 0, result.stderr.decode()
        assert b"Traceback" not in result.stderr

    np.save(tmp_path / "größe.npy", np.random.default_rng(0).normal(size=(2000, 8)))
    words = [w for w in WORLD if "activations" not in w and "tokens" not in w]
    words += ["activations=folder", f'activations.path="{tmp_path}/größe.npy"']
    run("train.py", *words, f'run_dir="{tmp_path}/für mich"')
    assert (tmp_path / "für mich" / "results.json").is_file()
    run("evaluate.py", f'run="{tmp_path}/für mich"', "eval=[core]", f'out="{tmp_path}/ü"')
    assert (tmp_path / "ü" / "evals" / "core.json").is_file()
    run("train.py", "-m", *words, "seed=0,1", f'sweep_dir="{tmp_path}/für alle"')
    assert (tmp_path / "für alle" / "1" / "results.json").is_file()


# --- small -----------------------------------------------------------------------------------


def test_saved_weights_may_be_read_by_whom_the_umask_allows(tmp_path):
    import sae

    model = sae.SAE(
        W_enc=torch.eye(2), b_enc=torch.zeros(2), W_dec=torch.eye(2), b_dec=torch.ones(2),
        config=sae.SAEConfig("l1", "relu", d_in=2, d_sae=2),
    )  # fmt: skip
    for umask, expected in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        old = os.umask(umask)
        try:
            for word, name in (("native", "sae"), ("saelens", "sae_weights")):
                folder = sae.save(tmp_path / f"{word}{umask}", model, word)
                mode = (folder / f"{name}.safetensors").stat().st_mode
                assert stat.S_IMODE(mode) == expected
        finally:
            os.umask(old)


def test_every_file_of_a_run_may_be_read_by_whom_the_umask_allows(tmp_path):
    from fsspec.implementations.local import get_umask

    old = os.umask(0o027)
    get_umask.cache_clear()  # Lightning writes checkpoints through it: asked once a process
    try:
        words = [word for word in WORLD if not word.startswith(("sae=", "k="))]
        train(tmp_path / "fitted", *words, "sae=pca", "k=2")  # keeps its fit in the cache, too
        train(tmp_path / "trained", *WORLD)
    finally:
        os.umask(old)
        get_umask.cache_clear()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"sae.safetensors", "last.ckpt", "report.html"} <= {file.name for file in files}
    modes = {file.name: oct(stat.S_IMODE(file.stat().st_mode)) for file in files}
    assert {name: mode for name, mode in modes.items() if mode != "0o640"} == {}


def test_whole_numbers_of_every_evaluation_may_be_0_where_that_means_something():
    """Counts are at least 1; of a seed, a port and what may be left out 0 has a meaning."""
    from sae.evals.base import EVALS

    taken = []
    for word, kind in EVALS.items():
        for name in (
            name for name, field in kind.model_fields.items() if type(field.default) is int
        ):
            try:
                kind(**{name: 0})
            except ConfigError as error:
                message = str(error)
                assert re.search(rf"{name}=0\b.*(at least|below 1)", message)  # noqa: PT017
            else:
                taken.append(f"{word}.{name}")
    seeded = [
        "absorption",
        "circuit",
        "erasure",
        "fade",
        "scr",
        "sparse_probing",
        "steer",
        "tpp",
    ]
    others = ["circuit.random", "dashboard.ablate", "dashboard.port", "ioi.exact"]
    assert sorted(taken) == sorted([*(f"{word}.seed" for word in seeded), *others])


@pytest.mark.parametrize("word", ["absorption", "scr", "sparse_probing", "tpp"])
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_a_seed_of_0_on_the_command_line(word, program):
    import evaluate  # noqa: F401  # registers its schema
    from conf.commandline import check_command_line

    words = [f"eval=[{word}]", f"eval.{word}.seed=0"]
    (config,) = check_command_line(program, [*(["run=x"] if program == "evaluate" else []), *words])
    assert config["eval"][word]["seed"] == 0


def test_whole_numbers_of_evaluations_may_be_0():
    from sae.evals.from_config import make_evals

    made = make_evals(
        {"scr": {"seed": 0}, "tpp": {"seed": 0.0}, "sparse_probing": {"seed": 0}}, 64, ["tokens"]
    )
    assert [one.seed for one in made.values()] == [0, 0, 0]
    for settings in ({"scr": {"seed": -1}}, {"core": {"batch_rows": 0}}, {"tpp": {"num_test": 0}}):
        with pytest.raises(ConfigError, match="must be .*at least"):
            make_evals(settings, 64, ["tokens"])


def test_the_table_shows_a_dash_where_there_is_no_interval(capsys):
    from sae.evals.base import Estimate, EvalResult
    from sae.reports.summary import print_results, print_summary

    known = {"value": 0.5, "low": 0.25, "high": 0.75}
    unknown = {"value": 0.5, "low": None, "high": None}
    training = {"dead": 0.0, "tokens": 10, "vectors_per_second": None}
    metrics = {"fvu": known, "l0": unknown}
    print_summary({"core": {"metrics": metrics}, "training": training}, "run")
    out = capsys.readouterr().out
    assert "0.25 to 0.75" in out
    assert "– to –" not in out
    estimates = {name: Estimate(**estimate) for name, estimate in metrics.items()}
    result = EvalResult("core", estimates, {"vectors": 3000})
    print_results({"core": result}, "run")
    out = capsys.readouterr().out
    assert "0.25 to 0.75" in out
    assert "– to –" not in out
    assert out.count("3,000 vectors") == 1


def test_names_of_metrics_are_never_cut_off(capsys):
    from sae.evals.base import Estimate, EvalResult
    from sae.reports.summary import print_results

    name = "m" * 200
    print_results({"steer": EvalResult("steer", {name: Estimate(0.5)}, {"prompts": 4})}, "run")
    out = capsys.readouterr().out
    assert "…" not in out
    assert out.count("m") >= len(name)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"training": {}}'])
def test_torn_results_are_one_clear_error(tmp_path, content):
    from sae.recipes import finished

    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"results\.json is damaged"):
        finished(tmp_path, {"sae": {}, "epochs": 1})
