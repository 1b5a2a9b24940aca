"""The tuning that everybody gets, and the trainings that are reported (docs/results/quality.md)."""

import logging
import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import show_log
from benchmarks.quality.contender import Contender, Control, Setting
from benchmarks.quality.contenders import chosen
from benchmarks.quality.data import SYNTHETIC, Size, prepare
from benchmarks.quality.records import trained
from benchmarks.quality.search import Point, closest, next_value, score, search, tuned_lr
from sae.provenance import write_json

log = logging.getLogger(__name__)
SLOPE: dict[Control, float] = {"k": 1.0, "target": 1.0, "coefficient": -1.0}
"""First guess of how log L0 follows the log of the control's value."""
LIMIT: dict[Control, int] = {"k": 2, "target": 2, "coefficient": 3}
"""Trainings that may be spent on meeting an L0."""
TOLERANCE = 0.1


@dataclass(frozen=True)
class Task:
    """One data set of the comparison.

    Attributes:
        data: Its name.
        size: Of the trainings that are reported.
        tuning: Of the trainings that choose the learning rate.
        d_sae: Latents.
        l0: Where methods are compared.
        frontier: Further L0s, one seed each.
        lr_from: Data set whose learning rate is taken over, instead of tuning one here.
        ce_contexts: Contexts for the cross entropy; 0: not measured.
    """

    data: str
    size: Size
    tuning: Size
    d_sae: int
    l0: float
    frontier: tuple[float, ...] = ()
    lr_from: str | None = None
    ce_contexts: int = 0


@dataclass(frozen=True)
class Plan:
    """The whole comparison.

    Attributes:
        tasks: Data sets; one whose learning rate others take over comes before them.
        seeds: Trainings with the chosen setting.
        work: Folder of data and records.
        lrs: Learning rates that everybody may try.
        options: What the report says of the sizes.
    """

    tasks: Sequence[Task]
    seeds: int
    work: Path
    lrs: int = 5
    options: dict[str, Any] = field(default_factory=dict)


def run(plan: Plan, patterns: list[str], jobs: int) -> None:
    """Every contender's chain of trainings, `jobs` chains at a time, one thread each."""
    for task in plan.tasks:
        for size in {task.tuning, task.size}:
            prepare(task.data, size, plan.work)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"  # the processes that are started now read it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_quiet) as pool:
        running = {pool.submit(chain, key, plan): key for key in chosen(patterns)}
        for done in as_completed(running):
            error = done.exception()
            if error is None:
                log.info("%s is complete", running[done])
            else:  # the others go on
                log.error("%s stopped: %r", running[done], error)


def _quiet() -> None:
    import torch

    torch.set_num_threads(1)
    show_log()


def chain(key: str, plan: Plan) -> None:
    """All trainings of one contender: each data set's tuning, seeds and frontier."""
    contender = chosen([key])[key]
    lrs: dict[str, float] = {}
    for task in plan.tasks:
        summary: dict[str, Any] = {"contender": key, "data": task.data, "l0": task.l0}
        start = first_value(contender, task.l0)
        if task.lr_from in lrs:
            lr, summary["lr_scores"] = lrs[task.lr_from], None
        else:
            lr, start, scores = tune(contender, task, plan)
            summary["lr_scores"] = {f"{tried:.3g}": _or_none(scores[tried]) for tried in scores}
        lrs[task.data] = lr
        points = meet(contender, task, plan, lr, start, task.size)
        best = closest(points, task.l0)
        for seed in range(plan.seeds):
            point(contender, task, plan, Setting(lr, best.value, seed), task.size, final=True)
        frontier = []
        for l0 in task.frontier:
            frontier.append(next_value(points, l0, SLOPE[contender.control]))
            setting = Setting(lr, frontier[-1], 0)
            points.append(point(contender, task, plan, setting, task.size, final=True))
        summary |= {
            "lr": lr, "value": best.value, "control": contender.control,
            "family": contender.family, "size": vars(task.size), "d_sae": task.d_sae,
            "seeds": plan.seeds, "frontier": frontier,
            "points": [tuple(p) for p in points if math.isfinite(p.fvu)],
        }  # fmt: skip
        name = f"{key.replace('/', '-').replace(', ', '-')}.json"
        folder = plan.work / "chosen" / task.data
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, summary)


def tune(contender: Contender, task: Task, plan: Plan) -> tuple[float, float, dict[float, float]]:
    """The learning rate with the least validation FVU at the asked L0; its value of the control."""
    found: dict[float, list[Point]] = {}

    def tried(lr: float) -> float:
        start = first_value(contender, task.l0)
        known = [p for points in found.values() for p in points]
        if known:
            start = closest(known, task.l0).value
        found[lr] = meet(contender, task, plan, lr, start, task.tuning)
        return score(found[lr], task.l0)

    lr, scores = tuned_lr(tried, contender.lr(task.d_sae), plan.lrs)
    points = found[lr]
    value = closest(points, task.l0).value
    return lr, value, scores


def meet(
    contender: Contender, task: Task, plan: Plan, lr: float, start: float, size: Size
) -> list[Point]:
    """Trainings of seed 0 until the L0 is met."""
    return search(
        lambda value: point(contender, task, plan, Setting(lr, value, 0), size), start, task.l0,
        slope=SLOPE[contender.control], tolerance=TOLERANCE, limit=LIMIT[contender.control],
    )  # fmt: skip


def point(
    contender: Contender, task: Task, plan: Plan, setting: Setting, size: Size, final: bool = False
) -> Point:
    """One training, on the validation split."""
    contexts = task.ce_contexts if final and task.data != SYNTHETIC else 0
    record = trained(contender, task.data, size, task.d_sae, setting, plan.work, contexts)
    if record["val"] is None:
        return Point(setting.value, 0.0, math.inf)
    return Point(setting.value, record["val"]["l0"], record["val"]["fvu"])


def first_value(contender: Contender, l0: float) -> float:
    """Where the search begins: at the L0 itself where the control is one."""
    return contender.start if contender.control == "coefficient" else l0


def _or_none(score: float) -> float | None:
    return score if math.isfinite(score) else None
