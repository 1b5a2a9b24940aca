"""Records as the folder that an instance of Neuronpedia imports. Nothing is sent anywhere.

    <model>/<layer>-<site>/{release,model,sourceset,source}.jsonl   one row each
    <model>/<layer>-<site>/features/batch-<n>.jsonl.gz              a row for each latent
    <model>/<layer>-<site>/activations/batch-<n>.jsonl.gz           a row for each context
    <model>/<layer>-<site>/explanations/batch-<n>.jsonl.gz          a row for each explanation

Rows have the columns of Neuronpedia's own export that records hold. Left out, because records do
not hold them or they are the instance's own: correlations, histograms of all logits, L1 shares of
neurons, the atom itself (`hasVector` is false), direct feature attribution, embeddings,
`creatorId`, `createdAt`, `dataSource`, and of the four single rows everything but the keys.
"""

import gzip
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sae.features.parts import (
    Explained,
    Explanations,
    batches,
    fired,
    index_of,
    interval_of,
    numbers_of,
    point_of,
    tokens_and_values,
    told,
    without_nul,
)
from sae.features.record import Record, Shown
from sae.features.records import Records
from sae.language.names import NAMES
from sae.writing import replacing

_LEVEL = 5  # as Neuronpedia compresses


def write_bulk(records: Records, folder: Path, explanations: Explanations) -> None:
    """Write the folder.

    Args:
        records: The records.
        folder: Folder to write `<model>/` to.
        explanations: Explanations of the latents, by index.
    """
    model, point = safe_name(records.facts["lm"]), point_of(records)
    source = f"{point.layer}-{point.site}"
    place = folder / model / source
    single = {
        "release": {"name": source}, "model": {"id": model},
        "sourceset": {"modelId": model, "name": point.site},
        "source": {"id": source, "modelId": model},
    }  # fmt: skip
    for name, row in single.items():
        _write(place / f"{name}.jsonl", [row])
    common = {"modelId": model, "layer": source}
    for n, batch in enumerate(batches(told(records, "neuronpedia_bulk"))):
        features = [common | _feature(record, records) for record in batch]
        activations = [
            common | _activation(one, record, source, index_of(record, records), i)
            for record in batch
            for i, one in enumerate(fired(record))
        ]
        explained = [
            common | _explanation(one, source, index_of(record, records), i)
            for record in batch
            for i, one in enumerate(explanations.get(index_of(record, records), ()))
        ]
        _write(place / f"features/batch-{n}.jsonl.gz", features)
        if explained:
            _write(place / f"explanations/batch-{n}.jsonl.gz", explained)
        _write(place / f"activations/batch-{n}.jsonl.gz", activations)


def _feature(record: Record, records: Records) -> dict[str, Any]:
    point = point_of(records)
    return {
        "index": str(index_of(record, records)), "sourceSetName": point.site,
        "maxActApprox": record.max, **numbers_of(record),
        "topkCosSimIndices": record.nearest.ids.tolist(),
        "topkCosSimValues": record.nearest.values.tolist(),
        "hasVector": False, "vectorDefaultSteerStrength": 10,
        "hookName": f"blocks.{point.layer}.{NAMES[point.site].transformer_lens}",
    }  # fmt: skip


def _activation(shown: Shown, record: Record, source: str, index: int, i: int) -> dict[str, Any]:
    tokens, values = tokens_and_values(shown, record)
    low, high, share = interval_of(shown, record)
    return {
        "id": f"{source}-{index}-{i}", "index": str(index), "tokens": tokens, "values": values,
        "maxValue": shown.value, "maxValueTokenIndex": shown.peak, "minValue": min(values),
        "binMin": low, "binMax": high, "binContains": share, "qualifyingTokenIndex": shown.peak,
    }  # fmt: skip


def _explanation(one: Explained, source: str, index: int, i: int) -> dict[str, Any]:
    return {
        "id": f"{source}-{index}-{i}", "index": str(index), "description": without_nul(one.text),
        "typeName": one.method, "explanationModelName": one.model,
    }  # fmt: skip


def _write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as lines of JSON; equal rows give equal bytes, compressed or not."""
    raw = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode("ascii")
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        compressed = file.suffix == ".gz"
        temporary.write_bytes(gzip.compress(raw, _LEVEL, mtime=0) if compressed else raw)


def safe_name(name: str) -> str:
    """A name as that of a folder: it leads nowhere else."""
    return re.sub(r"[^\w.=+-]+", "_", name).lstrip(".") or "_"
