"""Runs on the plane of sparsity and fidelity: who is dominated, and the area under each line.

Reads what was measured and measures nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any

import numpy as np

from sae.dictionaries.base import sparsity_of
from sae.errors import ArtifactError
from sae.provenance import content_key, provenance, write_json
from sae.reports.files import metric, read_json, table_bytes, write_bytes
from sae.reports.frontier_page import frontier_page
from sae.reports.frontier_plots import fidelity_picture, live_picture

MEASURED = (
    ("core", "l0"), ("core", "fvu"), ("downstream", "ce_recovered_zero"),
    ("downstream", "ce_recovered_mean"), ("downstream", "delta_ce"), ("core", "silent"),
)  # fmt: skip
"""What is read of each run, each with the ends of its interval."""
LINE = ("lm", "architecture", "site", "layer", "dict_ratio")
"""Runs that agree in these make one line."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Frontier:
    """Runs, lines through them, and what could not be read.

    Attributes:
        rows: One a run that has a result, in the order given.
        lines: One a line: its area, and that over the range of L0 that all lines of its place have.
        missing: What a run lacks, by its name.
    """

    rows: list[Row]
    lines: list[Row]
    missing: dict[str, str]


def read_frontier(runs: Mapping[str, str | Path]) -> Frontier:
    """Read `results.json` of each run; of an evaluation it lacks, `evals/<eval>.json`.

    Args:
        runs: Run folders by name.

    Raises:
        ArtifactError: If none of them has L0 and FVU.
    """
    rows, missing = [], {}
    for name, run in runs.items():
        results = _results(Path(run))
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
    return Frontier(rows, areas(rows), missing)


def row_of(name: str, results: Mapping[str, Any]) -> Row:
    """What a run is and what was measured, None where unknown.

    `live` is the number of latents that fire at least once on the `test_vectors` of the core
    evaluation; `place` is the same for runs that were measured on the same vectors.
    """
    core, downstream, training = (
        _mapping(results.get(word)) for word in ("core", "downstream", "training")
    )
    made = _mapping(core.get("provenance"))
    sae = _mapping(made.get("sae"))
    metadata = _mapping(sae.get("metadata"))
    activations = _mapping(metadata.get("activations"))
    settings = _mapping(_mapping(metadata.get("settings")).get("sae"))
    point = str(made.get("point") or "")
    site, _, layer = point.rpartition(".")
    if not layer.isdigit():  # a crosscoder has several
        site, layer = point, ""
    d_in, d_sae = sae.get("d_in"), sae.get("d_sae")
    vectors = _mapping(core.get("tokens")).get("vectors")
    place = {"point": made.get("point"), "store": made.get("store") or activations.get("key"),
             "d_in": d_in, "vectors": vectors}  # fmt: skip
    row: Row = {
        "run": name, "lm": _mapping(activations.get("lm")).get("name"),
        "architecture": sae.get("architecture"), "site": site or None,
        "layer": int(layer) if layer else None,
        "dict_ratio": round(d_sae / d_in, 6) if d_in and d_sae else None, "d_sae": d_sae,
        "sparsity": " ".join(sparsity_of(settings)) or None, "l1": settings.get("l1"),
        "seed": _mapping(metadata.get("settings")).get("seed"),
    }  # fmt: skip
    for word, key in MEASURED:
        found = metric(dict(results), word, key)
        row |= {key: found.get("value"), f"{key}_low": found.get("low"),
                f"{key}_high": found.get("high")}  # fmt: skip
    live = None if d_sae is None or row["silent"] is None else d_sae - round(row["silent"] * d_sae)
    counted = _mapping(downstream.get("tokens"))
    return row | {
        "dead": training.get("dead"), "live": live, "test_vectors": vectors,
        "test_tokens": counted.get("tokens"), "test_predictions": counted.get("predictions"),
        "training_tokens": training.get("tokens"), "place": content_key(place)[:8],
        "dominated": None, "dominated_ce": None,
    }  # fmt: skip


def pareto_front(rows: Sequence[Row], measure: str = "fvu") -> list[Row]:
    """Finished jobs that no other job beats in FVU and L0 at once, in the order of L0.

    Args:
        rows: With `l0` and the measure; those that lack one (None) are not on the front.
        measure: Of which less is better, FVU by default.

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
    for members in _grouped(rows, ("place",)).values():
        best = {(row["l0"], row[measure]) for row in pareto_front(members, measure)}
        for row in members:
            if row[measure] is not None:  # an equal of one on the front is not dominated
                row[column] = (row["l0"], row[measure]) not in best


def area(
    l0: Sequence[float | int], fvu: Sequence[float], low: float | int, high: float | int
) -> float:
    """Area under FVU over log10 L0 from `low` to `high`, straight between the points.

    Args:
        l0: Increasing and above 0.
        fvu: At these L0.
        low: At least the first L0.
        high: At most the last.

    Example:
        >>> area([1, 100], [0.4, 0.2], 1, 100), round(area([1, 100], [0.4, 0.2], 10, 100), 9)
        (0.6000000000000001, 0.25)
    """
    x = np.log10(np.asarray(l0, dtype=float))
    ends = [log10(low), log10(high)]
    inside = x[(x > ends[0]) & (x < ends[1])]
    at = np.concatenate([ends[:1], inside, ends[1:]])
    return float(np.trapezoid(np.interp(at, x, fvu), at))


def areas(rows: Sequence[Row]) -> list[Row]:
    """The area under each line, over its own range of L0 and over that of all lines of its place.

    Runs of equal L0 count once, with the mean of their FVU. Less is better; only `common_*` may be
    compared between lines. None where a line has one L0 only, or the lines share no range.
    """
    lines = []
    for members in _grouped([row for row in rows if row["l0"] > 0], ("place", *LINE)).values():
        by_l0 = {l0: [row["fvu"] for row in found]
                 for (l0,), found in _grouped(members, ("l0",)).items()}  # fmt: skip
        x = sorted(by_l0)
        y = [sum(by_l0[l0]) / len(by_l0[l0]) for l0 in x]
        own = area(x, y, x[0], x[-1]) if len(x) > 1 else None
        line: Row = {"line": line_of(members[0]), **{key: members[0][key] for key in LINE}}
        line |= {"place": members[0]["place"], "runs": len(members), "l0_from": x[0],
                 "l0_to": x[-1], "area": own,
                 "mean_fvu": None if own is None else own / log10(x[-1] / x[0])}  # fmt: skip
        lines.append((line, x, y))
    for line, x, y in lines:
        drawn = [other for other, *_ in lines
                 if other["place"] == line["place"] and other["area"] is not None]  # fmt: skip
        low = max((other["l0_from"] for other in drawn), default=0)
        high = min((other["l0_to"] for other in drawn), default=0)
        shared = line["area"] is not None and low < high
        found = area(x, y, low, high) if shared else None
        line |= {
            "common_from": low if shared else None, "common_to": high if shared else None,
            "common_area": found,
            "common_mean_fvu": None if found is None else found / log10(high / low),
        }  # fmt: skip
    return [line for line, *_ in lines]


def line_of(row: Mapping[str, Any]) -> str:
    """What the runs of a line have in common.

    Example:
        >>> line_of({"lm": "gpt2", "architecture": "topk", "site": "resid", "layer": 4,
        ...          "dict_ratio": 8.0})
        'topk gpt2 resid.4 x8'
    """
    point = ".".join(str(row[key]) for key in ("site", "layer") if row[key] is not None)
    ratio = "" if row["dict_ratio"] is None else f"x{row['dict_ratio']:g}"
    return " ".join(part for part in (row["architecture"], row["lm"], point, ratio) if part)


def by_line(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Runs of each line in the order of L0; lines of two places differ by the place's name."""
    groups = _grouped(rows, ("place", *LINE)).values()
    names = [line_of(members[0]) for members in groups]
    return {
        name if names.count(name) == 1 else f"{name} ({members[0]['place']})": sorted(
            members, key=lambda row: row["l0"]
        )
        for name, members in zip(names, groups, strict=True)
    }


def write_frontier(frontier: Frontier, folder: str | Path) -> Path:
    """Write `frontier.csv`, `areas.csv`, `frontier.json`, two pictures and `report.html`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "frontier.csv", table_bytes(list(frontier.rows[0]), frontier.rows))
    if frontier.lines:
        write_bytes(folder / "areas.csv", table_bytes(list(frontier.lines[0]), frontier.lines))
    lines = by_line(frontier.rows)
    write_bytes(folder / "frontier.png", fidelity_picture(lines))
    write_bytes(folder / "live.png", live_picture(frontier.rows))
    page = frontier_page(frontier.rows, lines, frontier.lines, frontier.missing)
    write_bytes(folder / "report.html", page)
    content = {"eval": "frontier", "runs": frontier.rows, "lines": frontier.lines}
    write_json(
        folder / "frontier.json",
        content | {"missing": frontier.missing, "provenance": provenance()},
    )
    return folder


def _results(run: Path) -> dict[str, Any]:
    found = read_json(run / "results.json")
    for word in ("core", "downstream"):
        if word not in found and (later := read_json(run / "evals" / f"{word}.json")):
            found[word] = later
    return found


def _grouped(rows: Sequence[Row], keys: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
