"""Hydra callbacks: what a multirun does before its first job, after each job, and at its end."""

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from callbacks.interruption import end_with_parent
from conf.commandline import resolve, searches
from conf.compose import names_of, parse, sweep_jobs
from conf.resume import continued
from conf.schema import checked_job
from sae.errors import SAEError
from sae.failures import fail, failed_jobs
from sae.owner import owned

log = logging.getLogger(__name__)

_held = ExitStack()
"""The sweep's folder. Not in the callback, which some launchers pickle."""


class SweepCallback(Callback):
    """Harvests all points of a sweep in one LM pass, and keeps `sweep.csv` and `sweep.png` fresh.

    Hydra calls `on_multirun_end` only when no job raised; train.py therefore notes a job's failure
    in its folder and returns, and the table is written while jobs end.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a folder with another sweep; harvest what the jobs need, in one pass for all."""
        from sae.planning import check_sweep
        from sae.recipes import harvest_together

        sweeper, folder = config.hydra.sweeper, Path(config.hydra.sweep.dir)
        try:
            _held.enter_context(owned(folder))
            overrides = parse(list(config.hydra.overrides.task))
            configs = []
            for number, job in enumerate(sweep_jobs(overrides, sweeper.get("params"))):
                composed = checked_job(job)
                if not searches(sweeper):
                    # Hydra writes into the folder before the job itself could find the conflict
                    composed = continued(folder / str(number), composed)
                configs.append(composed)
            resolve(configs)
            check_sweep(configs, together="launcher=ensemble" in names_of(overrides))
        except SAEError as error:
            fail(error)
        if searches(sweeper):  # Hydra's own sweeper writes this file, Optuna's does not
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, folder / "multirun.yaml")
        harvest_together(configs)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Let a worker of launcher=joblib end with its launcher."""
        end_with_parent()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the table and the plot fresh. A sweep that only harvests has none."""
        mode = config.hydra.mode
        if mode is not None and mode.name == "MULTIRUN" and not config.harvest_only:
            from sae.reports import job_ended

            job_ended(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Say where the table is, and leave with status 1 if a job failed."""
        folder = Path(config.hydra.sweep.dir)
        if not config.harvest_only:
            from sae.reports import finish_sweep

            finish_sweep(folder)
        _held.close()
        if (folder / "sweep.csv").exists():
            log.info("Table and plot of the sweep: %s", folder / "sweep.csv")
        if failed_jobs(folder):
            raise SystemExit(1)
