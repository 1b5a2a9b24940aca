"""evaluate.py as a user runs it, on a tiny random LM and random words."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "tests" / "fixtures" / "saebench"


def evaluate(*arguments, code=0, cwd=ROOT, **environment):
    result = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def trained(folder, *overrides):
    """A run that was trained in this process, with its activations in a cache of its own."""
    from train import compose, train

    words = ["debug=tiny", "epochs=1", "trainer.validations=0", "~callbacks.downstream", *overrides]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_CACHE", str(folder / "cache"))
        train(compose(words), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained with settings of its evaluations that are not the usual ones."""
    return trained(
        tmp_path_factory.mktemp("lm"), "eval.downstream.num_tokens=1024", "eval.core.resamples=50"
    )


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """Trained on a folder that was given by a relative path."""
    folder = tmp_path_factory.mktemp("folder")
    rows = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    np.save(folder / "mine.npy", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return trained(folder, "activations=folder", "activations.path=mine.npy")


def saved(run, name):
    return json.loads((run / "evals" / f"{name}.json").read_text())


def test_without_settings_or_cache_it_gives_the_numbers_of_the_run(run, tmp_path):
    """From another folder, where it leaves nothing; the training text is not harvested."""
    (tmp_path / "cwd").mkdir()
    home = tmp_path / "home"
    shutil.copytree(run, home / "run")
    evaluate("run='~/run'", cwd=tmp_path / "cwd", HOME=str(home), SAE_CACHE=str(tmp_path / "new"))
    assert list((tmp_path / "cwd").iterdir()) == []
    assert len(list((tmp_path / "new" / "activations").glob("*/metadata.json"))) == 1
    results = json.loads((run / "results.json").read_text())
    for name in ("core", "downstream"):
        again = saved(home / "run", name)
        assert again["tokens"] == results[name]["tokens"]
        assert again["settings"] == results[name]["settings"]
        for metric, estimate in again["metrics"].items():
            reported = results[name]["metrics"][metric]
            for key, value in reported.items():  # an approximate None does not exist
                assert estimate[key] == (value and pytest.approx(value, rel=1e-6)), metric
    assert again["settings"]["num_tokens"] == 1024


def test_other_text_and_other_settings_stand_beside_it(run, tmp_path):
    before = tuple((run / "evals").glob("*")) if (run / "evals").exists() else ()
    result = evaluate(
        f"run={run}", "eval=[core]", "corpus=random_words", "corpus.seed=99", "tokens=2048",
        "eval.core.resamples=30", SAE_CACHE=str(tmp_path / "new"),
    )  # fmt: skip
    assert "fvu" in result.stdout
    (new,) = set((run / "evals").glob("*")) - set(before)
    assert new.name == "core-random_words-tokens=2048-resamples=30.json"
    content = json.loads(new.read_text())
    left_out = content["details"]["left_out"]["not_counted"]
    assert content["tokens"]["vectors"] == 2048 // 32 * 31 - left_out
    assert 0 < left_out < 30  # separators
    assert content["settings"]["bootstrap"]["num_resamples"] == 30


def test_from_python_one_run_needs_no_list(run, monkeypatch):
    import sae

    monkeypatch.setenv("SAE_CACHE", str(run.parent / "cache"))
    result = sae.evaluate(run, {"core": {}}, device="cpu")["core"]
    assert saved(run, "core")["metrics"]["fvu"]["value"] == result.metrics["fvu"].value


def test_a_folder_of_activations(folder_run, tmp_path):
    from evaluate import evaluate as function
    from sae.errors import ConfigError

    results = function(folder_run, {"core": {}, "downstream": {}}, device="cpu")
    assert list(results) == ["core"]
    assert saved(folder_run, "core")["provenance"]["point"] is None
    with pytest.raises(ConfigError, match="needs the tokens"):
        function(folder_run, {"downstream": {}}, device="cpu")


def test_two_saes_at_once(run, monkeypatch):
    from evaluate import evaluate_together

    other = trained(run.parent / "other", "layer=2", "activations.site=mlp_out")
    monkeypatch.setenv("SAE_CACHE", str(run.parent / "cache"))
    results = evaluate_together([run, other], {"core": {}, "downstream": {}}, device="cpu")
    assert list(results) == ["downstream"]
    (file,) = (run / "evals").glob("downstream-together=*.json")
    points = [entry["point"] for entry in results["downstream"].provenance["together"]]
    assert file.stem == "downstream-together=" + "+".join(points)
    assert points[1] == "mlp_out.2"
    message = evaluate(f"run={run}", "together=true", code=1).stderr
    assert "no effect on one SAE" in message
    both = f"run=[{run},{other}]"
    for word in ("frontier", "compare"):
        message = evaluate(both, "together=true", f"eval=[{word}]", code=1).stderr
        assert f"together=true has no effect with eval=[{word}]" in message
    file.unlink()
    evaluate(both, "together=true", "eval=[downstream,frontier]")
    assert file.exists()
    assert list(run.parent.glob("frontier-*/frontier.csv"))


def test_saebench_files_of_a_run(run, tmp_path, monkeypatch):
    """`evaluate.py run=… 'eval=[core,…]' saebench=true`: a valid file beside each result."""
    from evaluate import evaluate as function

    rng, file = np.random.default_rng(0), tmp_path / "mine.csv"
    texts = ["".join(rng.choice(list("abcdef"), size=9)) + "xy"[i % 2] for i in range(240)]
    file.write_text("text,label\n" + "".join(f"{text},{text[-1]}\n" for text in texts))
    monkeypatch.setenv("SAE_CACHE", str(run.parent / "cache"))
    evals = {
        "core": {"legacy": "all"},
        "downstream": {},
        "sparse_probing": {"csv": str(file), "ks": [1, 2]},
        "tpp": {"csv": str(file), "num_train": 60, "num_test": 40, "thresholds": [2, 5]},
        "scr": {"pairs": ["professor/nurse"], "thresholds": [2, 5]},
        "absorption": {"num_examples": 3, "max_k": 2, "min_letters": 1, "min_probe_f1": 0.0},
    }
    given = {word: {**settings, "resamples": 20} for word, settings in evals.items()}
    function(run, given, device="cpu", saebench=True, out=str(tmp_path))
    written = {json.loads(one.read_text())["eval_type_id"]: json.loads(one.read_text())
               for one in (tmp_path / "evals").glob("*_saebench.json")}  # fmt: skip
    names = {"core", "sparse_probing", "tpp", "scr", "absorption_first_letter"}
    assert set(written) == names
    for name, content in written.items():
        schema = SCHEMAS / f"{name.removesuffix('_first_letter')}.json"
        jsonschema.validate(content, json.loads(schema.read_text()))
        assert content["sae_cfg_dict"]["point"] == "resid.1"
    assert written["core"]["eval_result_unstructured"]["not_measured"] == []
    assert min(written["core"]["eval_result_metrics"]["sparsity"].values()) > 0


def test_none_means_as_in_the_run(run, monkeypatch):
    from evaluate import evaluate as function

    monkeypatch.setenv("SAE_CACHE", str(run.parent / "cache"))
    result = function(run, {"core": {"resamples": None}}, device="cpu")["core"]
    assert result.settings["bootstrap"]["num_resamples"] == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nowhere"], "No saved SAE at nowhere: it does not exist"),
        ([], "run has no value"),
        (
            ["run=nowhere", "eval=[cor]"],
            "Available options in 'eval': absorption autointerp case_study circuit compare core",
        ),
        (["run=nowhere", "tokens=0"], "tokens=0 must be a whole number of at least 1"),
        (["run=nowhere", "device=foo"], "device=foo does not exist here. Choose one of: auto, cpu"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    assert message in evaluate(*arguments, code=1).stderr


def test_mistakes_in_settings_come_before_the_harvest(run, tmp_path):
    result = evaluate(
        f"run={run}", "eval.downstream.num_tokens=8", code=1, SAE_CACHE=str(tmp_path / "new")
    )
    assert "eval.downstream: num_tokens=8 is less than one context of 32" in result.stderr
    assert not list(tmp_path.glob("new/activations/*"))
