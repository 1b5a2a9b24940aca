"""Tables from the records; nothing is trained here."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Cell, Result, Table
from benchmarks.quality.contender import Control, Setting
from benchmarks.quality.contenders import chosen
from benchmarks.quality.data import SYNTHETIC, Size
from benchmarks.quality.picture import plot
from benchmarks.quality.protocol import LIMIT, Plan, Task
from benchmarks.quality.records import file_of, identity, records
from benchmarks.quality.search import MISSED, Point, closest, corrected, log_slope

PEER_BETTER = "▲"
COLUMNS = [
    "", "method", "library", "lr", "set by", "value", "L0", "FVU", "FVU at equal L0",
    "÷ ours of this kind", "silent",
]  # fmt: skip
SYNTHETIC_COLUMNS = ["features recovered", "atoms that are features", "MMCS"]
LM_COLUMNS = ["CE recovered (zero)", "CE recovered (mean)"]


def report(plan: Plan, out: Path) -> Path:
    """Write `<date>-quality.md`, `.json` and `.png`."""
    settings = plan.options | {"data": " ".join(task.data for task in plan.tasks)}
    result = Result("quality", settings)
    frontiers = {}
    for task in plan.tasks:
        rows = list(summaries(plan, task))
        if not rows:
            result.notes.append(f"{task.data}: no complete contender yet.")
            continue
        result.tables += [_table(task, rows), _commands(plan, task, rows)]
        result.raw[task.data] = rows
        frontiers[task.data] = rows
    result.notes += _notes(plan)
    out.mkdir(parents=True, exist_ok=True)
    return result.write(out, plot(frontiers) if frontiers else None)


def summaries(plan: Plan, task: Task) -> Iterator[dict[str, Any]]:
    """Settings chosen for each contender, with its measurements of every seed on the test split."""
    for file in sorted((plan.work / "chosen" / task.data).glob("*.json")):
        found = json.loads(file.read_text())
        size = Size(**found["size"])
        if (size, found["d_sae"], found["l0"]) != (task.size, task.d_sae, task.l0):
            continue
        settings = [Setting(found["lr"], found["value"], seed) for seed in range(found["seeds"])]
        runs = list(_records(plan, task, found["contender"], settings))
        further = [Setting(found["lr"], value, 0) for value in found["frontier"]]
        good = [run for run in runs if run["test"] and not run["error"]]
        failed = len(runs) - len(good)
        points = [Point(*p) for p in found["points"]]
        yield found | {
            "failed_seeds": failed,
            "test": [run["test"] for run in good],
            "ce": [run["ce"] for run in good if run["ce"]],  # of all, or of none
            "at_l0": []
            if failed or any(abs(run["test"]["l0"] / task.l0 - 1) > MISSED for run in good)
            else [_at(run["test"], points, task.l0) for run in good],
            "cpu_seconds": [run["cpu_seconds"] for run in good],
            "further": [
                run["test"] | (run["ce"] or {})
                for run in _records(plan, task, found["contender"], further)
                if run["test"] and not run["error"]
            ],
        }


def _records(
    plan: Plan, task: Task, contender: str, settings: Sequence[Setting]
) -> Iterator[dict[str, Any]]:
    """Records of the trainings with these settings, as far as they were made."""
    contexts = task.ce_contexts if task.data != SYNTHETIC else 0
    for setting in settings:
        key = identity(contender, task.data, task.size, task.d_sae, setting, contexts)
        if (file := file_of(plan.work, key)).exists():
            yield json.loads(file.read_text())


def compared(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """FVU at equal L0 of each contender over that of this project's of the same kind.

    None for this project's own, and where it lacks the architecture.
    """
    ours = {
        row["family"]: float(np.mean(row["at_l0"]))
        for row in rows
        if row["contender"].startswith("ours/") and row["at_l0"]
    }
    found: dict[str, float | None] = {}
    for row in rows:
        against = ours.get(row["family"])
        own = row["contender"].startswith("ours/")
        if own or against is None or not row["at_l0"]:
            found[row["contender"]] = None
        else:
            found[row["contender"]] = float(np.mean(row["at_l0"])) / against
    return found


def estimate(plan: Plan, patterns: list[str], jobs: int) -> str:
    """How many trainings there are at most, and how long by those that were already made."""
    rate: dict[tuple[str, str], float] = {}
    for record in records(plan.work):
        if record.get("cpu_seconds"):
            key = record["key"]
            rate[key["contender"], key["data"]] = record["cpu_seconds"] / key["vectors"]
    lines, total, unknown = (
        ["contender, CPU seconds a training by data set, trainings at most"],
        0.0,
        0,
    )
    for name, contender in chosen(patterns).items():
        parts = []
        for task in plan.tasks:
            vectors = vectors_needed(contender.control, task, plan.seeds, plan.lrs)
            per_vector = rate.get((name, task.data))
            if per_vector is None:
                unknown += 1
                parts.append(f"{task.data} ?")
                continue
            total += vectors * per_vector
            parts.append(
                f"{task.data} {per_vector * task.size.vectors:.1f} s x "
                f"{vectors / task.size.vectors:.1f}"
            )
        lines.append(f"{name:35s} {'; '.join(parts)}")
    lines.append(f"{total / 60:.0f} CPU minutes, {total / jobs / 60:.0f} minutes with {jobs} jobs")
    if unknown:
        lines.append(f"{unknown} not measured yet (train one with `train`)")
    return "\n".join(lines) + "\n"


def vectors_needed(control: Control, task: Task, seeds: int, lrs: int = 5) -> float:
    """Training vectors of a contender on a data set, if no search ends early.

    The first learning rate's search may take all of its trainings, later ones begin near their
    goal and mostly take two; so does the one at full length.
    """
    limit = LIMIT[control]
    tuning = 0 if task.lr_from else limit + (lrs - 1) * min(limit, 2)
    full = min(limit, 2) + (seeds - 1) + len(task.frontier)
    return tuning * task.tuning.vectors + full * task.size.vectors


def _at(test: Mapping[str, float], points: Sequence[Point], l0: float) -> float:
    """FVU on the test split, moved to the asked L0 along the contender's own frontier."""
    here = Point(0.0, test["l0"], test["fvu"])
    good = [p for p in points if math.isfinite(p.fvu) and p.fvu > 0 and p.l0 > 0]
    others = [p for p in good if abs(p.l0 / test["l0"] - 1) > 0.15]
    if not others:
        return here.fvu
    near = closest(good, test["l0"])
    side = [p for p in others if (p.l0 > test["l0"]) == (l0 > test["l0"])] or others
    return corrected(here, log_slope(near, closest(side, l0)), l0)


def _table(task: Task, rows: Sequence[Mapping[str, Any]]) -> Table:
    more = SYNTHETIC_COLUMNS if task.data == SYNTHETIC else LM_COLUMNS
    names = ["recovered", "true_atoms", "mmcs"] if task.data == SYNTHETIC else []
    title = (
        f"{task.data}: {task.size.vectors:,} vectors, d_sae {task.d_sae}, at L0 {task.l0:g}, "
        f"mean ± standard deviation over seeds"
    )
    table, against = Table(title, COLUMNS + more), compared(rows)
    for row in sorted(rows, key=lambda r: np.mean(r["at_l0"]) if r["at_l0"] else np.inf):
        library, _, method = row["contender"].partition("/")
        ratio = against[row["contender"]]
        cells: list[Cell] = [
            PEER_BETTER if ratio is not None and ratio < 1 else "", method + _failures(row),
            library, _lr(row), row["control"], _value(row), _spread(_all(row, "l0"), 3),
            _spread(_all(row, "fvu"), 3), _spread(row["at_l0"], 3), ratio,
            _spread(_all(row, "silent"), 2),
        ]  # fmt: skip
        cells += [_spread(_all(row, name), 3) for name in names]
        if task.data != SYNTHETIC:
            cells += [
                _spread([ce[f"ce_recovered_{how}"] for ce in row["ce"]], 3)
                for how in ("zero", "mean")
            ]
        table.rows.append(cells)  # pyright: ignore[reportArgumentType]
    return table


def _commands(plan: Plan, task: Task, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(f"{task.data}: how each row is made", ["row", "CPU s", "command"])
    for row in rows:
        vectors = "--synthetic-vectors" if task.data == SYNTHETIC else "--vectors"
        command = (
            f"`python -m benchmarks.quality train --method '{row['contender']}' --data {task.data} "
            f"{vectors} {task.size.vectors} --batch {task.size.batch} --lr {row['lr']:.6g} "
            f"--value {row['value']:.6g} --seed 0 --ratio {plan.options.get('ratio', 4):g}`"
        )
        if task.data != SYNTHETIC:
            command = f"{command[:-1]} --ce-contexts {task.ce_contexts}`"
        table.rows.append([row["contender"], _spread(row["cpu_seconds"], 3), command])
    return table


def _notes(plan: Plan) -> list[str]:
    return [
        f"{PEER_BETTER}: at equal L0 this peer's FVU is lower than that of ours of the same kind.",
        "FVU and L0 are of the saved form (thresholds) on the test split, in the LM's own units.",
        "FVU at equal L0: log FVU moved along the method's own frontier over log L0; "
        "none where the L0 of a seed is off by more than a quarter, or a seed failed.",
        "Picture: 0.4 to 2.5 times the L0; the worst tenth of the points lies outside.",
        "lr with an arrow: the best of those that were tried is the largest, or the smallest.",
        "silent: share of latents that fire on none of the test vectors.",
        f"Tuning on seed 0 and the validation split; the learning rate with "
        f"{plan.options.get('tuning_share', 1):g} of the vectors. docs/results/quality.md.",
    ]


def _failures(row: Mapping[str, Any]) -> str:
    return f" ({row['failed_seeds']} of {row['seeds']} failed)" if row["failed_seeds"] else ""


def _value(row: Mapping[str, Any]) -> float:
    """Its control; a k as the whole number that was trained."""
    return round(row["value"]) if row["control"] == "k" else row["value"]


def _lr(row: Mapping[str, Any]) -> str:
    """With an arrow where the best was the largest or the smallest that was tried."""
    lr, tried = f"{row['lr']:.3g}", sorted(map(float, row["lr_scores"] or ()))
    if not tried:
        return lr
    at_end = {tried[0]: " ↓", tried[-1]: " ↑"}
    return lr + at_end.get(float(lr), "")


def _all(row: Mapping[str, Any], name: str) -> list[float]:
    return [test[name] for test in row["test"]]


def _spread(values: Sequence[float], digits: int) -> str | None:
    if not values:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1)) if values[1:] else None
    shown = f"{mean:.{digits}g}"
    return shown if deviation is None else f"{shown} ± {deviation:.1g}"
