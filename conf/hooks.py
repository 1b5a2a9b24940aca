"""Hydra callbacks: what a multirun does before its first job, after each job, and at its end."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from conf.commandline import compose_job, fail, jobs, names_of, parse
from conf.schema import check
from sae.errors import SAEError

log = logging.getLogger(__name__)


class SweepCallback(Callback):
    """Harvests all points of a sweep in one LM pass, and keeps `sweep.csv` and `sweep.png` fresh.

    Hydra calls `on_multirun_end` only when no job raised; train.py therefore notes a job's failure
    in its folder and returns, and the table is written after every job.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Harvest what the jobs need, so that none waits for, or repeats, another's harvest."""
        words = list(config.hydra.overrides.task)
        for name, value in (config.hydra.sweeper.get("params") or {}).items():
            if not any(word.startswith(f"{name}=") for word in words):
                words.append(f"{name}={value}")
        try:
            overrides = parse(words)
            _harvest_all(
                [check(compose_job("train", job), names_of(overrides)) for job in jobs(overrides)]
            )
        except SAEError as error:
            fail(error)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Rewrite the table and the plot."""
        if config.hydra.mode is not None and config.hydra.mode.name == "MULTIRUN":
            from sae.reports import write_sweep

            write_sweep(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say where the table is, and leave with status 1 if a job failed."""
        folder = Path(config.hydra.sweep.dir)
        failed = sorted(folder.glob("*/error.txt"), key=lambda file: file.parent.name)
        log.info("Table and plot of the sweep: %s", folder / "sweep.csv")
        for file in failed:
            log.error("Job %s failed: %s", file.parent.name, file.read_text().splitlines()[0])
        if failed:
            raise SystemExit(1)


def _harvest_all(configs: list[dict[str, Any]]) -> None:
    """One LM pass for each text and LM, over all points that any job reads there."""
    from sae.activations.build import lm_activations, points_of
    from sae.provenance import content_key

    wanted: dict[str, tuple[dict[str, Any], list[Any]]] = {}
    for config in configs:
        activations = config["activations"]
        if activations["kind"] != "lm":
            continue
        shared = {k: v for k, v in activations.items() if k not in ("layer", "site")}
        key = content_key({"lm": config["lm"], "corpus": config["corpus"], "activations": shared})
        points = wanted.setdefault(key, (config, []))[1]
        points += [point for point in points_of(activations) if point not in points]
    for config, points in wanted.values():
        source = lm_activations(config["lm"], config["corpus"], points[0], config["activations"])
        source.prepare(also=points[1:])
