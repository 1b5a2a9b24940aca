"""One JSON file a training: whatever is there is not trained again."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.quality.contender import Contender, Setting
from benchmarks.quality.data import SYNTHETIC, Size, prepare
from sae.activations.counted import RowRule
from sae.provenance import content_key, write_json

log = logging.getLogger(__name__)


def identity(
    contender: str, data: str, size: Size, d_sae: int, setting: Setting, ce_contexts: int = 0
) -> dict[str, Any]:
    """Identity of a training and of its measurement."""
    left_out = {} if data == SYNTHETIC else {"rows": str(RowRule())}
    return {
        "contender": contender, "data": data, **asdict(size), **left_out, "d_sae": d_sae,
        "lr": float(f"{setting.lr:.6g}"), "value": float(f"{setting.value:.6g}"),
        "seed": setting.seed, "ce_contexts": ce_contexts,
    }  # fmt: skip


def file_of(work: Path, found: dict[str, Any]) -> Path:
    """Where the record of a training is."""
    name = found["contender"].replace("/", "-").replace(", ", "-")
    return work / "records" / found["data"] / f"{name}-{content_key(found)}.json"


def trained(
    contender: Contender, data: str, size: Size, d_sae: int, setting: Setting, work: Path,
    ce_contexts: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The record of a training, made now unless it is there.

    A training that fails is recorded with its error and infinite FVU: it is not tried again until
    its file is deleted, and it loses every comparison.
    """
    key = identity(contender.key, data, size, d_sae, setting, ce_contexts)
    file = file_of(work, key)
    if file.exists():
        return json.loads(file.read_text())
    from benchmarks.quality.measure import ce_recovered, measured

    torch.set_num_threads(1)
    given = Setting(key["lr"], key["value"], setting.seed)  # rounded as in the record
    record: dict[str, Any] = {"key": key, "error": None, "val": None, "test": None, "ce": None}
    try:
        with redirect_stdout(sys.stderr):
            vectors = prepare(data, size, work)
            start, cpu = time.perf_counter(), time.process_time()
            fitted = contender.fit(vectors, d_sae, given)
            record["seconds"] = time.perf_counter() - start
            record["cpu_seconds"] = time.process_time() - cpu
            record["val"] = measured(fitted, vectors, "val")
            record["test"] = measured(fitted, vectors, "test")
            if ce_contexts:
                record["ce"] = ce_recovered(fitted, vectors, ce_contexts)
        if not math.isfinite(record["val"]["fvu"]):
            record |= {"error": "not finite", "val": None, "test": None, "ce": None}
    except (RuntimeError, ValueError, AssertionError, ArithmeticError) as error:
        record["error"] = (
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )
        log.exception("%s failed", key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, record)
    log.info(
        "%s %s lr=%.3g value=%.4g seed=%d vectors=%d: %s", contender.key, data, given.lr,
        given.value, given.seed, size.vectors,
        record["error"] or f"L0 {record['val']['l0']:.1f} FVU {record['val']['fvu']:.4f} "
        f"{record['seconds']:.1f} s",
    )  # fmt: skip
    return record


def records(work: Path) -> Iterator[dict[str, Any]]:
    """All that were made."""
    for file in sorted((work / "records").rglob("*.json")):
        yield json.loads(file.read_text())
