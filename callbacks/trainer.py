"""Lightning's trainer, as a run of this project needs it."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only  # sets levels of logging, too
from lightning.pytorch.loggers import Logger

from callbacks.checkpoint import LastCheckpoint
from callbacks.from_config import build_loggers, build_watchers
from callbacks.manifest import Manifest
from callbacks.progress import TrainingProgress
from sae.activations.datamodule import ActivationDataModule
from sae.recipes import Tools
from sae.training.checkpoints import checkpoint_file
from sae.training.from_config import check_processes
from sae.training.settings import TrainerSettings

_INTERACTIVE = ("bash", "interactive")
"""Jobs whose variables Lightning does not read."""


def build_tools(config: Mapping[str, Any], run_dir: Path, begin: Callable[[], None]) -> Tools:
    """Loggers, callbacks and the manifest of a run.

    Args:
        config: The whole configuration, dtypes resolved.
        run_dir: The run folder.
        begin: Writes the configuration there.
    """
    quiet_lightning()
    seeds = {"seed": config["seed"], "activations.seed": config["activations"]["seed"]}
    manifest = Manifest(run_dir / "manifest.json", config, seeds)
    return Tools(
        begin=begin,
        recorder=manifest,
        loggers=partial(build_loggers, config, run_dir),
        trainer=lambda data, loggers: build_trainer(config, run_dir, data, manifest, loggers),
    )


def build_trainer(
    config: Mapping[str, Any],
    run_dir: Path,
    data: ActivationDataModule,
    manifest: Manifest,
    loggers: list[Logger],
) -> L.Trainer:
    """For `data.steps` steps, with checkpoint, progress, manifest and the measuring callbacks.

    Args:
        config: The whole configuration; its node `trainer` decides.
        run_dir: The run folder.
        data: Prepared.
        manifest: Times the training.
        loggers: As of `build_loggers`.
    """
    settings = TrainerSettings(**config["trainer"])
    validations = settings.validations
    precision: Any = settings.precision  # `auto` is resolved
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy="ddp" if settings.processes > 1 else "auto",
        precision=precision,
        max_steps=data.steps,
        max_epochs=-1,
        gradient_clip_val=settings.gradient_clip or None,
        log_every_n_steps=min(settings.log_every_steps, data.steps),
        val_check_interval=data.steps // (validations + 1) + 1 if validations else None,
        check_val_every_n_epoch=None if validations else 1,
        limit_val_batches=1.0 if validations else 0,
        num_sanity_val_steps=0,
        logger=loggers,
        callbacks=[
            manifest,
            LastCheckpoint(checkpoint_file(run_dir), settings.checkpoint_every_steps),
            TrainingProgress(),
            *build_watchers(config["callbacks"], data),
        ],
        enable_model_summary=False,
        default_root_dir=run_dir,
        plugins=_processes(settings),
    )


def _processes(settings: TrainerSettings) -> list[Any]:
    """The starter of processes, where Slurm's variables mislead Lightning.

    Inside a job of several tasks a program that was started without srun is one process, whatever
    SLURM_NTASKS says; Lightning would refuse, or wait for the others.

    Raises:
        ConfigError: If srun started another number of processes than the settings mean.
    """
    if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE:
        return []
    if "SLURM_STEP_ID" not in os.environ:
        if settings.num_nodes > 1:
            check_processes(1, settings)
        return [LightningEnvironment()]
    check_processes(int(os.environ["SLURM_NTASKS"]), settings)
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(settings.devices))  # Lightning reads it
    return []


def quiet_lightning() -> None:
    """Silence Lightning's hints about hardware and products."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if rank_zero_only.rank != 0:  # the first of several processes speaks for all
        logging.getLogger().setLevel(logging.WARNING)
    # Lightning 2.6 with torch 2.13; nothing that a user could act on
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
