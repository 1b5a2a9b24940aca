"""Records in the formats of other tools. Nothing is sent anywhere.

`saedashboard`: `batch-<n>.json` as SAEDashboard 0.8 writes and reads them.
`neuronpedia`: `upload-<n>.json`, bodies of Neuronpedia's `POST /api/feature/upload-batch`.
`neuronpedia_bulk`: the folder that an instance of Neuronpedia imports (`neuronpedia_bulk`).
`circuit_tracer`: `<latent>.json`, the feature files that viewers of attribution graphs read.
`delphi`: `latents/<hook>/<first>_<last>.safetensors` and `config.json`, which delphi explains from,
and `explanations-<method>/<hook>_latent<n>.txt`, which it scores.

Explanations go into the formats that have a place for them: all but `circuit_tracer` and
`saedashboard`. Fields that records do not hold (correlations with neurons, histograms of all
logits) stay empty.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import ConfigError
from sae.features.neuronpedia_bulk import safe_name, write_bulk
from sae.features.parts import (
    Explanations,
    batches,
    fired,
    index_of,
    interval_of,
    logits,
    numbers_of,
    point_of,
    silent,
    tokens_and_values,
    told,
    without_nul,
)
from sae.features.record import INTERVALS, Record, Shown
from sae.features.records import Records
from sae.language.names import NAMES
from sae.provenance import write_json
from sae.types import Ends
from sae.writing import replacing

_LONGEST, _LONGEST_EXPLANATION = 1024, 512


def export(
    records: Records, word: str, folder: Path, explanations: Explanations | None = None
) -> None:
    """Write records in another format.

    Args:
        records: The records.
        word: A key of `EXPORTS`.
        folder: Made if it is missing.
        explanations: Explanations of the latents, by index.

    Raises:
        ConfigError: If the SAE writes several points.
    """
    if len(Ends.parse(records.facts["point"]).writes) > 1:
        raise ConfigError(
            f"eval.dashboard.export: these formats are for SAEs of one point, and this one writes "
            f"{records.facts['point']}. Leave export out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    EXPORTS[word](records, folder, explanations or {})


def _saedashboard(records: Records, folder: Path, explanations: Explanations) -> None:
    facts = records.facts
    for n, batch in enumerate(batches(told(records, "saedashboard"))):
        content = {
            "model_id": facts["lm"], "layer": point_of(records).layer,
            "sae_set": point_of(records).site, "sae_id_suffix": None,
            "features": [_of_saedashboard(record, records) for record in batch],
        }  # fmt: skip
        write_json(folder / f"batch-{n}.json", content, indent=None)
    write_json(folder / "skipped_indexes.json", {"skipped_indexes": silent(records)})


def _of_saedashboard(record: Record, records: Records) -> dict[str, Any]:
    return {
        "feature_index": index_of(record, records),
        **numbers_of(record),
        "n_prompts_total": records.facts["tokens"] // records.facts["ctx"],
        "n_tokens_in_prompt": records.facts["ctx"],
        "dataset": records.facts["text"],
        "activations": [_of_prompt(one, record) for one in fired(record)],
    }


def _of_prompt(shown: Shown, record: Record) -> dict[str, Any]:
    tokens, values = tokens_and_values(shown, record)
    low, high, share = interval_of(shown, record)
    return {
        "bin_min": low, "bin_max": high, "bin_contains": share,
        "tokens": tokens, "values": values, "qualifying_token_index": shown.peak,
    }  # fmt: skip


def _neuronpedia(records: Records, folder: Path, explanations: Explanations) -> None:
    point = point_of(records)
    for n, batch in enumerate(batches(told(records, "neuronpedia"))):
        content = {
            "modelId": records.facts["lm"],
            "source": f"{point.layer}-{point.site}",
            "features": [_of_neuronpedia(record, records, explanations) for record in batch],
        }
        write_json(folder / f"upload-{n}.json", content, indent=None)


def _of_neuronpedia(record: Record, records: Records, explanations: Explanations) -> dict[str, Any]:
    activations = []
    for shown in fired(record):
        tokens, values = tokens_and_values(shown, record)
        low, high, share = interval_of(shown, record)
        first = max(0, min(shown.peak - _LONGEST // 2, len(tokens) - _LONGEST))
        part = slice(first, first + _LONGEST)
        activations.append({
            "tokens": tokens[part], "values": values[part],
            "quantileMin": low, "quantileMax": high, "quantileFraction": share,
        })  # fmt: skip
    return {
        "index": index_of(record, records), "density": record.density,
        "topLogits": logits(record, "top_logits"),
        "bottomLogits": logits(record, "bottom_logits"),
        "explanations": [
            {"text": without_nul(one.text)[:_LONGEST_EXPLANATION], "methodName": one.method,
             "modelName": one.model}
            for one in explanations.get(index_of(record, records), ())
        ],
        "activations": activations,
    }  # fmt: skip


def _circuit_tracer(records: Records, folder: Path, explanations: Explanations) -> None:
    for record in told(records, "circuit_tracer"):
        groups = [("Top activations", [one for one in record.contexts if one.group == "top"])]
        for interval in range(INTERVALS, 0, -1):
            those = [
                one for one in record.contexts
                if one.group == "interval" and one.interval == interval
            ]  # fmt: skip
            groups.append((f"Interval {interval}", those))
        content = {
            "transcoder_id": records.facts["point"],
            "index": index_of(record, records),
            "examples_quantiles": [
                {"quantile_name": name, "examples": [_example(one, record) for one in shown]}
                for name, shown in groups
                if shown
            ],
            "top_logits": [one["token"] for one in logits(record, "top_logits")],
            "bottom_logits": [one["token"] for one in logits(record, "bottom_logits")],
            "act_min": 0.0,
            "act_max": record.max,
            "quantile_values": record.decile_edges.tolist(),
            "histogram": record.histogram.sum(1).tolist(),
            "activation_frequency": record.density,
        }
        write_json(folder / f"{index_of(record, records)}.json", content, indent=None)


def _example(shown: Shown, record: Record) -> dict[str, Any]:
    tokens, values = tokens_and_values(shown, record)
    return {
        "tokens": tokens, "tokens_acts_list": values, "train_token_ind": shown.peak,
        "is_repeated_datapoint": False,
    }  # fmt: skip


def _delphi(records: Records, folder: Path, explanations: Explanations) -> None:
    from safetensors.numpy import save_file

    facts, tokens = records.facts, records.text.tokens
    hook = f"{point_of(records).layer}.{NAMES[point_of(records).site].transformer_lens}"
    latents = folder / "latents" / hook  # delphi takes every folder beside it for a hook
    latents.mkdir(parents=True, exist_ok=True)
    groups = records.groups()
    for group in groups:
        locations, activations = [], []
        for latent, (row, value) in zip(group, records.firings_of(group), strict=True):
            context, position = records.locate(row)
            number = np.full(len(row), latent - group.start)
            locations.append(np.stack([context, position, number], axis=1))
            activations.append(value)
        places = np.concatenate(locations)
        kind = np.uint16 if places.max(initial=0) < 2**16 else np.uint32
        content = {
            "locations": places.astype(kind), "tokens": tokens.astype(np.int64),
            "activations": np.concatenate(activations).astype(np.float16),
        }  # fmt: skip
        file = latents / f"{group.start}_{group.stop - 1}.safetensors"
        with replacing(file) as temporary:
            save_file(content, temporary)
    write_json(latents / "config.json", {
        "model_name": facts["lm"], "dataset_repo": facts["text"], "dataset_split": facts["split"],
        "dataset_name": "", "dataset_column": "text", "batch_size": 32,
        "cache_ctx_len": facts["ctx"], "n_tokens": facts["tokens"], "n_splits": len(groups),
    })  # fmt: skip
    for index, known in explanations.items():
        for one in known:
            place = folder / f"explanations-{safe_name(one.method)}"
            place.mkdir(exist_ok=True)
            with replacing(place / f"{hook}_latent{index}.txt") as temporary:
                temporary.write_text(json.dumps(without_nul(one.text)), encoding="utf-8")


EXPORTS: dict[str, Callable[[Records, Path, Explanations], None]] = {
    "saedashboard": _saedashboard, "neuronpedia": _neuronpedia,
    "neuronpedia_bulk": write_bulk, "circuit_tracer": _circuit_tracer, "delphi": _delphi,
}  # fmt: skip
"""Writers by the word of the format."""
