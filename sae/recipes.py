"""One run, from its configuration to its report: an SAE is trained, a baseline is fitted.

Loggers, callbacks and the record of the run come from outside (`Tools`): nothing in `sae` knows
Weights & Biases, Hydra or the screen.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only

from sae.activations.datamodule import ActivationDataModule
from sae.activations.from_config import build_source, points_of
from sae.activations.passes import harvest_all, source_at
from sae.activations.sources import ActivationSource
from sae.artifacts import load, save_sae
from sae.checksums import FOLDER_FILE, check_folder, seal_files
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError
from sae.evals.from_config import check_evals, ctx_of, offers_of, run_evals
from sae.planning import Machine, check_fits, plan_runs
from sae.provenance import write_json
from sae.reading import read_object
from sae.reports import print_summary, results_table, write_report
from sae.reports.pages import write_pages
from sae.sharing import sharing
from sae.training.baselines import fit_baseline
from sae.training.checkpoints import (
    check_unchanged,
    checkpoint_file,
    checksum_of_curves,
    forget_previous,
    read_checkpoint,
)
from sae.training.divergence import WORST_FVU
from sae.training.from_config import (
    build_data,
    build_module,
    check_processes,
    check_settings,
    l1_equivalents,
    resolve_device,
    resolve_dtypes,
)
from sae.training.module import SAEModule
from sae.training.predictions import check_predictions
from sae.training.ranks import part
from sae.training.settings import TrainerSettings

SEALED = ("metrics.csv", "results.json")
"""Files of a finished run that a damaged byte would change without a word."""
Config = Mapping[str, Any]
log = logging.getLogger(__name__)


@runtime_checkable
class Recorder(Protocol):
    """Measures how long the stages of a run take."""

    @property
    def training(self) -> Mapping[str, float]:
        """Numbers of the training: vectors, seconds, vectors_per_second."""
        ...

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage outside training."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Enclose the work on what is fitted; a training is enclosed by its trainer."""
        ...


@runtime_checkable
class Dashboard(Protocol):
    """A logger that shows results and keeps the SAE."""

    def log_results(self, rows: list[dict[str, Any]]) -> None:
        """Show the rows of the table of results."""
        ...

    def log_sae(self, folder: Path, metadata: Mapping[str, Any]) -> None:
        """Keep the saved SAE."""
        ...


@dataclass(frozen=True)
class Tools:
    """Everything that a run uses from outside `sae`.

    Attributes:
        begin: Writes the configuration into the run folder.
        recorder: Keeps the times.
        loggers: Makes the loggers, from the optimiser steps done before and the checksum of the
            curves so far (None: not known).
        trainer: Makes the trainer, from the data module and the loggers.
    """

    begin: Callable[[], None]
    recorder: Recorder
    loggers: Callable[[int, int | None], list[Any]]
    trainer: Callable[[ActivationDataModule, list[Any]], Trainer]


def run(config: Config, run_dir: Path, tools: Tools) -> dict[str, Any]:
    """Harvest, train or fit, save, evaluate and report one SAE, or go on with the run in `run_dir`.

    Args:
        config: The checked configuration, with resolved dtypes (`resolve_dtypes`).
        run_dir: The run folder (docs/reference/formats.md), owned by this process.
        tools: Parts that `sae` does not have: trainer, loggers, manifest.

    Returns:
        The content of `results.json`; nothing in the processes of a DDP training but the first.

    Raises:
        SAEError: If anything the user gave is wrong. What was saved before stays as it was.
    """
    device = resolve_device(config["trainer"]["accelerator"])
    check_settings(config)  # mistakes come before the harvest, which may take long
    source = build_source(config["activations"], config["lm"], config["corpus"], device)
    check_evals(config["eval"], ctx_of(source), offers_of(source))
    check_fits(plan_runs([dict(config)]), Machine.here(device))
    checkpoint = read_checkpoint(run_dir)
    check_unchanged(checkpoint, source)
    with tools.recorder.stage("harvest"):
        source.prepare()
    check_predictions(source, config)
    data = build_data(config, source)
    module = None if is_fitted(config) else build_module(config, data)
    if rank_zero_only.rank == 0:
        (run_dir / FOLDER_FILE).unlink(missing_ok=True)  # what it notes will change
        tools.begin()
    start = 0 if checkpoint is None else int(checkpoint["global_step"])
    state = None if checkpoint is None else checkpoint_file(run_dir)
    if checkpoint is not None and start >= data.steps:  # killed between last step and results
        state = checkpoint["state_dict"]
    loggers = tools.loggers(start, checksum_of_curves(checkpoint))
    del checkpoint  # its memory is the training's
    try:
        with tools.recorder.session() if module is None else nullcontext():
            if module is None:
                made = _fit(config, data, tools)
            else:
                made = _train(config, module, data, state, tools, loggers)
            if rank_zero_only.rank != 0:  # the rest is one process's work
                return {}
            made.sae.metadata.update(_metadata(config, data) | made.metadata)
            save_sae(run_dir / "sae", made.sae)
            with tools.recorder.stage("evaluate"):
                results = _evaluate(config, run_dir, source, device)
        results["training"] = {"epochs": config["epochs"], **made.training}
        _publish(results, run_dir, loggers, 0 if module is None else data.steps)
        forget_previous(run_dir)
    finally:
        for logger in loggers:
            getattr(logger, "close", lambda: None)()
    return results


class Made(NamedTuple):
    """Result of a recipe: the SAE, and facts about its making for its metadata and the results."""

    sae: SAE
    metadata: dict[str, Any]
    training: dict[str, Any]


def _train(
    config: Config, module: SAEModule, data: ActivationDataModule,
    state: Path | dict[str, Any] | None, tools: Tools, loggers: list[Any],
) -> Made:  # fmt: skip
    equivalents = l1_equivalents(config, data)
    for logger in loggers:
        logger.log_hyperparams({"l1_equivalents": equivalents})
    trainer = tools.trainer(data, loggers)
    check_processes(trainer.world_size, TrainerSettings(**config["trainer"]))
    if isinstance(state, dict):
        module.load_state_dict(state)
    else:
        trainer.fit(module, datamodule=data, ckpt_path=state, weights_only=True)
        part()
        sharing().meet()  # nobody measures while a neighbour trains
    seen = {"tokens": data.steps * data.batch_size, "dead": module.dead_share()}
    return Made(
        module.dictionary.folded(data.scale),
        {"l1_equivalents": equivalents, **seen, "steered": module.coefficient},
        {
            **seen,
            "dead_after_tokens": module.dead_after_tokens,
            "revived": int(module.revived),
            "vectors_per_second": tools.recorder.training.get("vectors_per_second"),
            **equivalents,
            **module.coefficient,
        },
    )


def _fit(config: Config, data: ActivationDataModule, tools: Tools) -> Made:
    """Fit a baseline. The run folder is that of a training, without curves and checkpoint."""
    with tools.recorder.stage("fit"):
        baseline, facts = fit_baseline(config, data)
    numbers = {name: fact for name, fact in facts.items() if not isinstance(fact, list)}
    seen = {"tokens": data.rows("train").num_rows, "dead": None, "vectors_per_second": None}
    return Made(baseline, {"fit": facts}, {**seen, **numbers})


def is_fitted(config: Config) -> bool:
    """True for a baseline, which is fitted instead of trained."""
    return config["sae"].get("kind") == "baseline"


def finished(run_dir: Path, config: Config) -> dict[str, Any] | None:
    """Results of a run that needs no more training, with its report; else None.

    Raises:
        ArtifactError: If its results are damaged, or a finished run is to continue but its
            checkpoint is gone.
    """
    file = run_dir / "results.json"
    if not os.path.lexists(file):
        return None
    check_folder(run_dir)
    try:
        results = read_object(file)
        done = is_fitted(config) or results["training"]["epochs"] >= config["epochs"]
    except (ArtifactError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} is damaged ({error}). Delete it: the run is then finished from its "
            "checkpoint, or choose another run_dir."
        ) from None
    if done:  # and what a kill after the results, or a full disk, left undone
        if not (run_dir / FOLDER_FILE).exists():
            _seal(run_dir)
        if not (run_dir / "report.html").exists():
            write_report(run_dir)
        forget_previous(run_dir)
        return results
    if not (file := checkpoint_file(run_dir)).exists():
        raise ArtifactError(
            f"{run_dir} holds a finished run without {file.name}, so it cannot be trained further. "
            "Choose another run_dir."
        )
    return None


def harvest(config: dict[str, Any]) -> None:
    """Fill the cache for every layer and site of the configuration, in one LM pass a split."""
    resolve_dtypes(config)
    device = resolve_device(config["trainer"]["accelerator"])
    check_fits(plan_runs([config]), Machine.here(device))
    points = points_of(config["activations"])
    source_at(config, points[0], device).prepare(also=points[1:])


def harvest_together(configs: Iterable[Config]) -> None:
    """Fill the cache for all points that any of the runs reads (`harvest_all`)."""
    harvest_all(configs, lambda config: resolve_device(config["trainer"]["accelerator"]))


def _metadata(config: Config, data: ActivationDataModule) -> dict[str, Any]:
    """Origin of a saved dictionary: the part that does not depend on the training."""
    names = ("sae", "seed", "eval") if is_fitted(config) else (
        "sae", "resample", "optimizer", "seed", "eval", "e2e"
    )  # fmt: skip
    return {
        "activations": dict(data.source.describe()),
        "scale": data.scales[0] if len(data.scales) == 1 else list(data.scales),
        "normalize": data.normalize,
        "counted": None if data.counted is None else data.counted.to_json(),
        "settings": {name: config.get(name) for name in names},
    }


def _evaluate(
    config: Config, run_dir: Path, source: ActivationSource, device: str
) -> dict[str, Any]:
    """Measure the artifact that was saved, not the module in memory."""
    evaluated = run_evals(load(run_dir / "sae"), source, config["eval"], device)
    for name, result in evaluated.items():
        write_pages(result, run_dir / "evals" / name)
    return {name: result.with_tables(run_dir) for name, result in evaluated.items()}


def _publish(results: dict[str, Any], run_dir: Path, loggers: Sequence[Any], step: int) -> None:
    """To every logger, to `results.json` (last: it marks the run as finished), report, screen."""
    rows = results_table(results)
    values = {f"test/{row['metric']}": row["value"] for row in rows if row["value"] is not None}
    for logger in loggers:
        logger.log_metrics(values, step=step)
        if isinstance(logger, Dashboard):
            logger.log_results(rows)
            logger.log_sae(run_dir / "sae", metadata=values)
    fvu = results.get("core", {}).get("metrics", {}).get("fvu", {}).get("value")
    if fvu is not None and fvu > WORST_FVU:
        log.warning("FVU is %.3g on the test split, where 1 is as good as the mean.", fvu)
    write_json(run_dir / "results.json", results)
    _seal(run_dir)
    write_report(run_dir)
    print_summary(results, str(run_dir))


def _seal(run_dir: Path) -> None:
    seal_files(run_dir, [file for name in SEALED if (file := run_dir / name).exists()])


def objectives(results: Mapping[str, Any]) -> tuple[float, float] | None:
    """The objectives of a sweeper: FVU and L0 on the test split; None if they were not measured."""
    metrics = results.get("core", {}).get("metrics", {})
    found = [metrics.get(name, {}).get("value") for name in ("fvu", "l0")]
    return None if None in found else (found[0], found[1])
