"""`frontier`: runs on the plane of sparsity and fidelity, and which of them are dominated.

Reads what was measured of each run, and measures nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from sae.artifacts.placed import PlacedSAE
from sae.artifacts.runs import mapping, metric, read_results
from sae.dictionaries.from_config import sparsity_of
from sae.errors import ArtifactError
from sae.evals.base import PLACING, Evaluation, Measured, register
from sae.metrics.lines import Row, areas, grouped, seed_spreads
from sae.provenance import content_key, provenance
from sae.tables import Table, Type
from sae.types import Split

log = logging.getLogger(__name__)
MEASURED = (
    ("core", "l0"), ("core", "fvu"), ("downstream", "ce_recovered_zero"),
    ("downstream", "ce_recovered_mean"), ("downstream", "delta_ce"), ("core", "silent"),
)  # fmt: skip
"""Metrics that are read of each run, each with the ends of its interval."""
_TEXTS = (
    "run", "line", "lm", "architecture", "site", "sparsity", "setting", "place",
)  # fmt: skip
_COUNTS = (
    "layer", "d_sae", "seed", "live", "test_vectors", "test_tokens", "test_predictions",
    "training_tokens", "runs", "points", "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class Frontier:
    """Runs, lines through them, and what could not be read.

    Attributes:
        rows: One row for each run with a result, in the order given.
        lines: One row for each line: its area, and that over the range of L0 that all lines of its
            place have.
        seeds: One row for each setting that was trained with several seeds: their mean and spread.
        missing: Metrics that a run lacks, by its name.
    """

    rows: list[Row]
    lines: list[Row]
    seeds: list[Row]
    missing: dict[str, str]


@register
class FrontierEval(Evaluation):
    """Tables of runs, lines through them, settings with several seeds (docs/guides/frontier.md).

    Runs that lack a result are named in `details.missing`.
    """

    name: ClassVar[str] = "frontier"
    takes: ClassVar[Literal["one", "several", "both"]] = "several"
    unused: ClassVar[tuple[str, ...]] = (*PLACING, "format", "device")
    unfinished: ClassVar[bool] = True

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Read the results of each run folder."""
        found = read_frontier({one.name: one.folder for one in subjects if one.folder})
        for what in sorted(set(found.missing.values())):
            lacking = [name for name, missing in found.missing.items() if missing == what]
            log.warning("%s: %s", what, ", ".join(lacking))
        named = {"runs": found.rows, "lines": found.lines, "seeds": found.seeds}
        return Measured(
            metrics={},
            tokens={name: len(rows) for name, rows in named.items()},
            details={"missing": found.missing},
            tables={
                name: Table.of({column: _typed(column) for column in rows[0]}, rows)
                for name, rows in named.items()
                if rows
            },
        )

    def describe(self, subjects: Sequence[PlacedSAE], on: Split) -> dict[str, Any]:
        """Versions and machine; no SAE is loaded."""
        return provenance()


def _typed(column: str) -> tuple[Type, str]:
    """Type and unit of a column."""
    if column in _TEXTS:
        return "string", ""
    if column in _COUNTS:
        return "int64", "tokens" if column.endswith("_tokens") else ""
    if column.startswith("dominated"):
        return "bool", ""
    nats = column.startswith("delta_ce")
    return "float64", "nat" if nats else "share" if column in ("silent", "dead") else ""


def read_frontier(runs: Mapping[str, str | Path]) -> Frontier:
    """Read `results.json` of each run; of an evaluation it lacks, `evals/<eval>.json`.

    Args:
        runs: Run folders by name.

    Raises:
        ArtifactError: If none of them has L0 and FVU.
    """
    rows, missing = [], {}
    for name, run in runs.items():
        results = read_results(Path(run), ("core", "downstream"))
        row = row_of(name, results)
        lacking = [
            word for word, needed in (("core", ("l0", "fvu")), ("downstream", ("delta_ce",)))
            if any(metric(results, word, key).get("value") is None for key in needed)
        ]  # fmt: skip
        if lacking:
            missing[name] = f"no {' and no '.join(lacking)} result" if results else "no results"
        if "core" not in lacking:
            rows.append(row)
    if not rows:
        raise ArtifactError(
            f"None of these has L0 and FVU: {', '.join(runs) or 'no run was given'}. Measure them "
            "first: python evaluate.py run=… 'eval=[core,downstream]'."
        )
    for column, measure in (("dominated", "fvu"), ("dominated_ce", "delta_ce")):
        mark_dominated(rows, column, measure)
    return Frontier(rows, areas(rows), seed_spreads(rows), missing)


def row_of(name: str, results: Mapping[str, Any]) -> Row:
    """Name, settings and metrics of a run, None where unknown.

    `live` is the number of latents that fire at least once on the `test_vectors` of the core
    evaluation; `place` is the same for runs that were measured on the same vectors, `setting` for
    runs that were trained alike but for their seed.
    """
    core, downstream, training = (
        mapping(results.get(word)) for word in ("core", "downstream", "training")
    )
    made = mapping(core.get("provenance"))
    sae = mapping(made.get("sae"))
    metadata = mapping(sae.get("metadata"))
    activations = mapping(metadata.get("activations"))
    trained = mapping(metadata.get("settings"))
    settings = mapping(trained.get("sae"))
    setting = {name: value for name, value in trained.items() if name not in ("seed", "eval")}
    point = str(made.get("point") or "")
    site, _, layer = point.rpartition(".")
    if not layer.isdigit():  # a crosscoder has several
        site, layer = point, ""
    d_in, d_sae = sae.get("d_in"), sae.get("d_sae")
    vectors = mapping(core.get("tokens")).get("vectors")
    place = {"point": made.get("point"), "store": made.get("store") or activations.get("key"),
             "d_in": d_in, "vectors": vectors}  # fmt: skip
    row: Row = {
        "run": name, "lm": mapping(activations.get("lm")).get("name"),
        "architecture": sae.get("architecture"), "site": site or None,
        "layer": int(layer) if layer else None,
        "dict_ratio": round(d_sae / d_in, 6) if d_in and d_sae else None, "d_sae": d_sae,
        "sparsity": " ".join(sparsity_of(settings)) or None, "l1": settings.get("l1"),
        "seed": trained.get("seed"),
        "setting": content_key({"settings": setting, "tokens": training.get("tokens")})[:8],
    }  # fmt: skip
    for word, key in MEASURED:
        found = metric(dict(results), word, key)
        row |= {key: found.get("value"), f"{key}_low": found.get("low"),
                f"{key}_high": found.get("high")}  # fmt: skip
    live = None if d_sae is None or row["silent"] is None else d_sae - round(row["silent"] * d_sae)
    counted = mapping(downstream.get("tokens"))
    return row | {
        "dead": training.get("dead"), "live": live, "test_vectors": vectors,
        "test_tokens": counted.get("tokens"), "test_predictions": counted.get("predictions"),
        "training_tokens": training.get("tokens"), "place": content_key(place)[:8],
        "dominated": None, "dominated_ce": None,
    }  # fmt: skip


def pareto_front(rows: Sequence[Row], measure: str = "fvu") -> list[Row]:
    """Finished jobs that no other job beats in FVU and L0 at once, in the order of L0.

    Args:
        rows: Runs with `l0` and the measure; those that lack one (None) are not on the front.
        measure: Name of the metric, FVU by default; less is better.

    Example:
        >>> jobs = [{"l0": 9, "fvu": 0.1}, {"l0": 5, "fvu": 0.3}, {"l0": 6, "fvu": 0.4}]
        >>> [job["l0"] for job in pareto_front(jobs)]
        [5, 9]
    """
    front: list[Row] = []
    measured = [row for row in rows if row[measure] is not None and row["l0"] is not None]
    for row in sorted(measured, key=lambda row: (row["l0"], row[measure])):
        if not front or row[measure] < front[-1][measure]:
            front.append(row)
    return front


def mark_dominated(rows: Sequence[Row], column: str, measure: str) -> None:
    """Set `column`: whether a run of the same place is at least as good in both, better in one.

    Runs without the measure keep None. Intervals are not looked at.
    """
    for members in grouped(rows, ("place",)).values():
        best = {(row["l0"], row[measure]) for row in pareto_front(members, measure)}
        for row in members:
            if row[measure] is not None:  # an equal of one on the front is not dominated
                row[column] = (row["l0"], row[measure]) not in best
