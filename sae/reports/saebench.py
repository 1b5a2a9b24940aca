"""Results in SAEBench's JSON schema, so that its plots and tables read them.

Only what was measured is written: numbers that we do not have and that the schema demands are -1,
as SAEBench writes them where an evaluation was switched off, and are listed under
`eval_result_unstructured.not_measured`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from uuid import uuid4

import numpy as np

from sae.dictionaries.sae import SAE, SIGNED
from sae.errors import ConfigError
from sae.evals.base import EvalResult
from sae.provenance import provenance

NOT_MEASURED = -1.0
_FREQUENCIES = (
    "freq_over_1_percent", "freq_over_10_percent", "normalized_freq_over_1_percent",
    "normalized_freq_over_10_percent",
)  # fmt: skip
_CORE = {
    "model_behavior_preservation": {
        "kl_div_score": "kl_score", "kl_div_with_ablation": "kl_zero", "kl_div_with_sae": "kl",
    },
    "model_performance_preservation": {
        "ce_loss_score": "ce_recovered_zero", "ce_loss_with_ablation": "ce_zero",
        "ce_loss_with_sae": "ce_sae", "ce_loss_without_sae": "ce_clean",
    },
    "reconstruction_quality": {
        "explained_variance": "explained_variance",
        "explained_variance_legacy": "ev_saebench_legacy",
        "mse": "mse", "cossim": "cosine",
    },
    "shrinkage": {
        "l2_norm_in": "norm", "l2_norm_out": "norm_hat", "l2_ratio": "l2_ratio",
        "relative_reconstruction_bias": "relative_bias",
    },
    "sparsity": {"l0": "l0", "l1": "l1_saebench"},
    "token_stats": {
        "total_tokens_eval_reconstruction": "tokens",
        "total_tokens_eval_sparsity_variance": "vectors",
    },
    "misc_metrics": {
        "average_max_encoder_cosine_sim": "encoder_max_cosine",
        "average_max_decoder_cosine_sim": "decoder_max_cosine",
        "frac_alive": "alive",
        **{name: name for name in _FREQUENCIES},
    },
}  # fmt: skip
"""SAEBench's groups and names, each with ours."""


def saebench_content(
    word: str, results: Mapping[str, EvalResult], sae: SAE, name: str
) -> dict[str, Any]:
    """One result as the file that SAEBench would have written.

    Args:
        word: `core` (which takes `downstream` along, where it was run), `sparse_probing`, `tpp`,
            `scr`, `absorption` or `autointerp` (chat.saebench gives its number).
        results: Results of one SAE by word.
        sae: The SAE.
        name: Stands for the SAE's id.

    Raises:
        ConfigError: If SAEBench has no such evaluation.
    """
    if word not in NAMES:
        raise ConfigError(f"SAEBench has no {word}. Choose from {', '.join(NAMES)}.")
    signed = sae.config.activation in SIGNED  # SAEBench's sums and f > 0 differ from ours
    metrics, details, missing = _core(results, signed) if word == "core" else _OTHERS[word](results)
    result = results[word]
    return {
        "eval_type_id": "absorption_first_letter" if word == "absorption" else word,
        "eval_config": {},
        "eval_id": str(uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "sae_bench_commit_hash": "none",
        "sae_lens_id": name,
        "sae_lens_release_id": "lightning-sae",
        "sae_lens_version": "none",
        "sae_cfg_dict": asdict(sae.config) | {"point": result.provenance.get("point")},
        "eval_result_unstructured": {
            "written_by": "lightning-sae",
            "versions": provenance()["versions"],
            "settings": result.settings,
            **({"caveat": result.details["caveat"]} if word == "absorption" else {}),
            "not_measured": missing,
        },
    }


Written = tuple[dict[str, Any], list[dict[str, Any]], list[str]]


def _values(result: EvalResult) -> dict[str, float | None]:
    return {name: estimate.value for name, estimate in result.metrics.items()}


def _core(results: Mapping[str, EvalResult], signed: bool) -> Written:
    known: dict[str, Any] = _values(results["core"]) | dict(results["core"].tokens)
    known |= {"explained_variance": _less(known.get("fvu")), "alive": _less(known.get("silent"))}
    if "downstream" in results:
        known |= _values(results["downstream"]) | dict(results["downstream"].tokens)
        if known.get("kl_zero"):
            known["kl_score"] = 1 - known["kl"] / known["kl_zero"]
    if signed:
        known |= dict.fromkeys([*_FREQUENCIES, "alive"])
    else:
        known.setdefault("l1_saebench", known.get("l1"))
    missing: list[str] = []
    metrics: dict[str, dict[str, Any]] = {}
    for group, names in _CORE.items():
        metrics[group] = {}
        for name, own in names.items():
            value = known.get(own)
            if value is None:
                missing.append(f"{group}.{name}")
                value = -1 if group == "token_stats" else NOT_MEASURED
            metrics[group][name] = value
    return metrics, [], missing


def _less(value: float | None) -> float | None:
    return None if value is None else 1 - value


def _sparse_probing(results: Mapping[str, EvalResult]) -> Written:
    def named(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        accuracy = {
            name.removesuffix("_accuracy"): value
            for name, value in values.items()
            if name.endswith("_accuracy")
        }
        llm = {"llm_test_accuracy": accuracy["llm"]}
        llm |= {f"llm_top_{name.removeprefix('neurons_top_')}_test_accuracy": value
                for name, value in accuracy.items() if name.startswith("neurons_top_")}  # fmt: skip
        sae = {f"{name}_test_accuracy": value for name, value in accuracy.items()
               if name.startswith("sae_top_")}  # fmt: skip
        return llm, sae

    result = results["sparse_probing"]
    llm, sae = named(_values(result))
    details = []
    for dataset, one in result.details["sets"].items():
        parts = named({name: entry["value"] for name, entry in one["metrics"].items()})
        details.append({"dataset_name": dataset, **parts[0], **parts[1]})
    return {"llm": llm, "sae": sae}, details, ["sae.sae_test_accuracy"]


def _tpp(results: Mapping[str, EvalResult]) -> Written:
    values = _values(results["tpp"])
    detail = {"dataset_name": results["tpp"].details["dataset"], **values}
    return {"tpp_metrics": values}, [detail], []


def _scr(results: Mapping[str, EvalResult]) -> Written:
    details = [
        {"dataset_name": pair, **one["metrics"]}
        for pair, one in results["scr"].details["pairs"].items()
    ]
    return {"scr_metrics": _values(results["scr"])}, details, []


def _absorption(results: Mapping[str, EvalResult]) -> Written:
    result = results["absorption"]
    scores = {
        name: value for name, value in _values(result).items()
        if name.endswith(("absorption_fraction_score", "full_absorption_score", "split_features"))
    }  # fmt: skip
    details = [
        {"first_letter": letter} | {
            name: one[name] for name in (
                "mean_absorption_fraction", "full_absorption_rate", "num_full_absorption",
                "num_probe_true_positives", "num_split_features",
            )
        }
        for letter, one in result.details["letters"].items()
        if letter in result.details["letters_counted"]
    ]  # fmt: skip
    missing = [f"mean.{name}" for name, value in scores.items() if value is None]
    mean = {name: NOT_MEASURED if value is None else value for name, value in scores.items()}
    return {"mean": mean}, details, missing


def _autointerp(results: Mapping[str, EvalResult]) -> Written:
    result = results["autointerp"]
    rows = result.tables["saebench"].rows() if "saebench" in result.tables else []
    scores = [row["score"] for row in rows if row["score"] is not None]
    values = {
        "autointerp_score": float(np.mean(scores)) if scores else NOT_MEASURED,
        "autointerp_std_dev": float(np.std(scores, ddof=1)) if len(scores) > 1 else NOT_MEASURED,
    }
    missing = [f"autointerp.{name}" for name, value in values.items() if value == NOT_MEASURED]
    return {"autointerp": values}, [], missing


_OTHERS: dict[str, Callable[[Mapping[str, EvalResult]], Written]] = {
    "sparse_probing": _sparse_probing, "tpp": _tpp, "scr": _scr, "absorption": _absorption,
    "autointerp": _autointerp,
}  # fmt: skip
NAMES = ("core", *_OTHERS)
"""Evaluations of ours that SAEBench has a schema for."""
