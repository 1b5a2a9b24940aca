"""Results in SAEBench's schema: validated against its own files (0.6.0, texts taken out)."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from _evals import coarse_sae, make
from _labelled import context_of, planted

from sae.errors import ConfigError
from sae.evals import Bootstrap, CoreEval, DownstreamEval, Estimate, EvalResult
from sae.evals.absorption import Letter
from sae.evals.scr import SCREval
from sae.explanations.saebench import STUDIED
from sae.reports.saebench import NAMES, saebench_content
from sae.tables import Table

pytestmark = pytest.mark.slow

SCHEMAS = Path(__file__).parents[1] / "fixtures" / "saebench"
FEW = Bootstrap(num_resamples=5)


def result(word: str, metrics: dict[str, float | None], details: dict) -> EvalResult:
    estimates = {name: Estimate(value) for name, value in metrics.items()}
    return EvalResult(word, estimates, {}, details)


def absorption(defined: bool = True) -> EvalResult:
    scores = ("absorption_fraction_score", "full_absorption_score", "num_split_features")
    metrics = {f"{kind}_{name}": 0.25 if defined else None for kind in ("mean", "std_dev")
               for name in scores}  # fmt: skip
    letter = Letter("c", 9, 0.9, [3, 1], [0.5, 0.6], torch.tensor([0.5, 0.0]),
                    torch.tensor([True, False])).details()  # fmt: skip
    details = {"caveat": "small", "letters_counted": ["c"], "letters": {"c": letter, "x": letter}}
    return result("absorption", metrics | {"probe_accuracy": 0.9}, details)


@pytest.fixture
def results(tmp_path, tiny_lm):
    sae = planted(torch.eye(32)[:3], torch.zeros(3), noise=9)
    probing = {f"{word}_{score}": 0.5 for word in ("llm", "sae_top_1", "neurons_top_1", "pca_top_1")
               for score in ("accuracy", "auc")}  # fmt: skip
    tpp = {f"tpp_threshold_2_{word}": 0.1 for word in
           ("total_metric", "intended_diff_only", "unintended_diff_only")}  # fmt: skip
    context = make(coarse_sae(), tmp_path)
    return {
        "core": CoreEval(bootstrap=FEW, legacy=("all",)).run(context),
        "downstream": DownstreamEval(bootstrap=FEW).run(context),
        "sparse_probing": result("sparse_probing", probing, {"sets": {"one": {
            "metrics": {name: {"value": value} for name, value in probing.items()}}}}),
        "tpp": result("tpp", tpp, {"dataset": "mine"}),
        "absorption": absorption(),
        "autointerp": replace(result("autointerp", {}, {}), tables={"saebench": Table.of(
            STUDIED, [{"latent": "1", "score": 0.75}, {"latent": "2", "score": 1.0},
                      {"latent": "3", "state": "unparsed"}]
        )}),
        "scr": SCREval(pairs=("professor/nurse",), thresholds=(2, 5), bootstrap=FEW).run(
            context_of(sae, tiny_lm("gpt2"))
        ),
    }  # fmt: skip


def known_names(schema: dict) -> set[str]:
    return {name for part in schema["$defs"].values() for name in part["properties"]}


def leaves(metrics: dict) -> dict[str, float]:
    return {name: value for group in metrics.values() for name, value in group.items()}


def test_files_are_valid(results):
    for word in NAMES:
        written = json.loads(json.dumps(saebench_content(word, results, coarse_sae(), "mine")))
        schema = json.loads((SCHEMAS / f"{word}.json").read_text())
        jsonschema.validate(written, schema)
        assert set(leaves(written["eval_result_metrics"])) <= known_names(schema)
        for detail in written["eval_result_details"]:
            assert set(detail) <= known_names(schema)
    broken = saebench_content("tpp", results, coarse_sae(), "mine")
    broken["eval_result_metrics"] = {"tpp_metrics": {"tpp_threshold_2_total_metric": "high"}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, json.loads((SCHEMAS / "tpp.json").read_text()))


def test_the_score_of_explanations_is_over_latents_that_have_one(results):
    written = saebench_content("autointerp", results, coarse_sae(), "mine")
    found = written["eval_result_metrics"]["autointerp"]
    assert found["autointerp_score"] == 0.875
    assert found["autointerp_std_dev"] == pytest.approx(0.125 * 2**0.5)
    results["autointerp"] = result("autointerp", {}, {})
    written = saebench_content("autointerp", results, coarse_sae(), "mine")
    assert len(written["eval_result_unstructured"]["not_measured"]) == 2


def test_values_are_ours_under_their_names(results, tmp_path):
    written = saebench_content("core", results, coarse_sae(), "mine")
    got = leaves(written["eval_result_metrics"])
    core, downstream = results["core"].metrics, results["downstream"].metrics
    assert got["explained_variance"] == 1 - core["fvu"].value
    assert got["frac_alive"] == 1 - core["silent"].value
    assert got["ce_loss_score"] == downstream["ce_recovered_zero"].value
    assert got["kl_div_with_sae"] == downstream["kl"].value
    assert written["eval_result_unstructured"]["not_measured"] == []
    assert got["l2_norm_in"] == core["norm"].value
    assert got["kl_div_score"] == pytest.approx(
        (downstream["kl_zero"].value - downstream["kl"].value) / downstream["kl_zero"].value
    )
    plain = {"core": CoreEval(bootstrap=FEW).run(make(coarse_sae(), tmp_path))}
    written = saebench_content("core", plain, coarse_sae(), "mine")
    got = leaves(written["eval_result_metrics"])
    missing = written["eval_result_unstructured"]["not_measured"]
    assert {name.split(".")[1] for name in missing} == {n for n, v in got.items() if v == -1}
    assert "reconstruction_quality.explained_variance_legacy" in missing
    assert got["l1"] == pytest.approx(core["l1_saebench"].value)  # a code of one sign
    alone = saebench_content("core", {"core": results["core"]}, coarse_sae(), "mine")
    assert leaves(alone["eval_result_metrics"])["ce_loss_score"] == -1

    probing = saebench_content("sparse_probing", results, coarse_sae(), "mine")[
        "eval_result_metrics"
    ]
    assert probing["llm"] == {"llm_test_accuracy": 0.5, "llm_top_1_test_accuracy": 0.5}
    assert probing["sae"] == {"sae_top_1_test_accuracy": 0.5}


def test_codes_of_both_signs_have_fewer_numbers(tmp_path):
    """SAEBench counts f > 0 as firing."""
    signed = coarse_sae()
    signed.config = replace(signed.config, activation="identity")
    plain = CoreEval(bootstrap=FEW).run(make(coarse_sae(), tmp_path))
    written = saebench_content("core", {"core": plain}, signed, "mine")
    got = leaves(written["eval_result_metrics"])
    for name in ("l1", "frac_alive", "freq_over_1_percent", "normalized_freq_over_10_percent"):
        assert got[name] == -1
    assert got["average_max_decoder_cosine_sim"] == plain.metrics["decoder_max_cosine"].value


def test_absorption(results):
    written = saebench_content("absorption", results, coarse_sae(), "mine")
    assert written["eval_type_id"] == "absorption_first_letter"
    assert written["eval_result_unstructured"]["caveat"] == "small"
    assert [one["first_letter"] for one in written["eval_result_details"]] == ["c"]
    assert written["eval_result_details"][0]["num_full_absorption"] == 1
    assert set(written["eval_result_metrics"]["mean"].values()) == {0.25}
    undefined = saebench_content(
        "absorption", {"absorption": absorption(False)}, coarse_sae(), "mine"
    )
    assert set(undefined["eval_result_metrics"]["mean"].values()) == {-1}
    assert "mean.mean_num_split_features" in undefined["eval_result_unstructured"]["not_measured"]


def test_what_saebench_has_not(results):
    with pytest.raises(ConfigError, match="SAEBench has no downstream"):
        saebench_content("downstream", results, coarse_sae(), "mine")
