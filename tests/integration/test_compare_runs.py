"""evaluate.py eval=[compare] on runs of a sweep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Three finished jobs and one that is not."""
    from train import compose, train

    folder = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_CACHE", str(folder / "cache"))
        for job, words in enumerate((["sae=pca", "k=8"], ["sae=ica", "k=8"], ["sae=kmeans"])):
            train(compose(["debug=tiny", "eval=[core]", *words]), folder / str(job))
    (folder / "3").mkdir()
    (folder / "multirun.yaml").write_text("")
    return folder


def evaluate(*arguments, code=0, **environment):
    result = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *map(str, arguments)], cwd=ROOT,
        capture_output=True, text=True, timeout=240, env=os.environ | environment,
    )  # fmt: skip
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout + result.stderr


def test_a_sweep_is_compared(sweep):
    output = evaluate(
        f"run={sweep}", "eval=[compare]", "eval.compare.num_tokens=1e3",
        "eval.compare.matched_above=0.8", SAE_CACHE=str(sweep / "cache"),
    )  # fmt: skip
    (folder,) = sweep.glob("compare-*")
    assert f"wrote {folder}" in output
    table = pd.read_csv(folder / "pairs.csv")
    assert len(table) == 6
    assert table["mmcs"].between(0.1, 1).all()
    assert table["max_correlation"].between(0, 1).all()
    content = json.loads((folder / "compare.json").read_text())
    assert content["settings"]["num_tokens"] == 1000
    assert content["details"]["names"] == ["0", "1", "2"]
    assert len(pd.read_parquet(folder / "compare.pairs.parquet")) == 6
    assert not list(sweep.glob("*/evals"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.compare.numtokens=1"], "Did you mean eval.compare.num_tokens"),
        (["corpus=houseofcommons"], "corpus has no effect with eval=[compare]"),
        (["tokens=100"], "tokens has no effect with eval=[compare]"),
    ],
)
def test_mistakes_are_explained(words, message, sweep):
    assert message in evaluate(f"run={sweep}", "eval=[compare]", *words, code=1)


def test_a_sweep_has_a_frontier(sweep):
    output = evaluate(f"run={sweep}", "eval=[frontier]")
    (folder,) = sweep.glob("frontier-*")
    assert f"wrote {folder}" in output
    assert "no downstream result: 0, 1, 2" in output
    assert "no results: 3" in output
    table = pd.read_csv(folder / "frontier.csv")
    assert list(table["architecture"]) == ["pca", "ica", "kmeans"]
    results = json.loads((sweep / "1" / "results.json").read_text())
    assert table["fvu"][1] == pytest.approx(results["core"]["metrics"]["fvu"]["value"], rel=1e-12)
    assert not table["dominated"].all()


@pytest.mark.parametrize("word", ["corpus=houseofcommons", "device=cpu"])
def test_a_frontier_measures_nothing(sweep, word):
    message = f"{word.partition('=')[0]} has no effect with eval=[frontier]"
    assert message in evaluate(f"run={sweep}", "eval=[frontier]", word, code=1)
