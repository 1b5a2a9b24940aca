"""Results in SAEBench's schema: validated against its own files (0.6.0, texts taken out)."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from _evals import coarse_sae, make
from _labelled import context_of, planted

from sae.errors import ConfigError
from sae.evals import Bootstrap, CoreEval, DownstreamEval, Estimate, EvalResult
from sae.evals.saebench import WORDS, to_saebench
from sae.evals.scr import SCREval

SCHEMAS = Path(__file__).parents[1] / "fixtures" / "saebench"
FEW = Bootstrap(num_resamples=5)


def result(word: str, metrics: dict[str, float], details: dict) -> EvalResult:
    estimates = {name: Estimate(value) for name, value in metrics.items()}
    return EvalResult(word, estimates, {}, details)


@pytest.fixture
def results(tmp_path, tiny_lm):
    sae = planted(torch.eye(32)[:3], torch.zeros(3), noise=9)
    probing = {f"{word}_{score}": 0.5 for word in ("llm", "sae_top_1", "neurons_top_1", "pca_top_1")
               for score in ("accuracy", "auc")}  # fmt: skip
    tpp = {f"tpp_threshold_2_{word}": 0.1 for word in
           ("total_metric", "intended_diff_only", "unintended_diff_only")}  # fmt: skip
    context = make(coarse_sae(), tmp_path)
    return {
        "core": CoreEval(bootstrap=FEW).run(context),
        "downstream": DownstreamEval(bootstrap=FEW).run(context),
        "sparse_probing": result("sparse_probing", probing, {"sets": {"one": {
            "metrics": {name: {"value": value} for name, value in probing.items()}}}}),
        "tpp": result("tpp", tpp, {"dataset": "mine"}),
        "scr": SCREval(pairs=("professor/nurse",), thresholds=(2, 5), bootstrap=FEW).run(
            context_of(sae, tiny_lm("gpt2"))
        ),
    }  # fmt: skip


def known_names(schema: dict) -> set[str]:
    return {name for part in schema["$defs"].values() for name in part["properties"]}


def leaves(metrics: dict) -> dict[str, float]:
    return {name: value for group in metrics.values() for name, value in group.items()}


def test_files_are_valid(results):
    for word in WORDS:
        written = json.loads(json.dumps(to_saebench(word, results, coarse_sae(), "mine")))
        schema = json.loads((SCHEMAS / f"{word}.json").read_text())
        jsonschema.validate(written, schema)
        assert set(leaves(written["eval_result_metrics"])) <= known_names(schema)
        for detail in written["eval_result_details"]:
            assert set(detail) <= known_names(schema)
    broken = to_saebench("tpp", results, coarse_sae(), "mine")
    broken["eval_result_metrics"] = {"tpp_metrics": {"tpp_threshold_2_total_metric": "high"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json.loads((SCHEMAS / "tpp.json").read_text()))


def test_values_are_ours_under_their_names(results):
    written = to_saebench("core", results, coarse_sae(), "mine")
    got = leaves(written["eval_result_metrics"])
    core, downstream = results["core"].metrics, results["downstream"].metrics
    assert got["explained_variance"] == 1 - core["fvu"].value
    assert got["frac_alive"] == 1 - core["silent"].value
    assert got["ce_loss_score"] == downstream["ce_recovered_zero"].value
    assert got["kl_div_with_sae"] == downstream["kl"].value
    missing = written["eval_result_unstructured"]["not_measured"]
    assert {name.split(".")[1] for name in missing} == {n for n, v in got.items() if v == -1}
    alone = to_saebench("core", {"core": results["core"]}, coarse_sae(), "mine")
    assert leaves(alone["eval_result_metrics"])["ce_loss_score"] == -1

    probing = to_saebench("sparse_probing", results, coarse_sae(), "mine")["eval_result_metrics"]
    assert probing["llm"] == {"llm_test_accuracy": 0.5, "llm_top_1_test_accuracy": 0.5}
    assert probing["sae"] == {"sae_top_1_test_accuracy": 0.5}


def test_what_saebench_has_not(results):
    with pytest.raises(ConfigError, match="SAEBench has no downstream"):
        to_saebench("downstream", results, coarse_sae(), "mine")
