"""Train a sparse autoencoder on the activations of a language model.

    python train.py layer=4 l1=1e-3 dict_ratio=8

From Python: `train(compose(["layer=4", "l1=1e-3"]), Path("my_run"))`.
"""

import logging
import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from callbacks.interruption import Interrupted, handling
from conf import ensemble
from conf.commandline import compose_job, explained, fail, names_of, parse, run_program
from conf.quoting import typed
from conf.runs import continued, save_config, saved_config
from conf.schema import check, register, reject_lists
from sae.checksums import FOLDER_FILE, check_folder, seal_files
from sae.errors import ArtifactError, ConfigError, DivergedError, SAEError
from sae.lockstep import meet
from sae.memory import keep_freed_memory
from sae.owner import owned
from sae.provenance import write_json
from sae.reading import read_object

if TYPE_CHECKING:  # importing these takes seconds, which --help and errors need not wait for
    from callbacks.manifest import Manifest
    from sae.activations.datamodule import ActivationDataModule
    from sae.activations.sources import ActivationSource
    from sae.training.module import SAEModule

SEALED = ("metrics.csv", "results.json")
"""Files of a finished run that a damaged byte would change without a word."""

register()
log = logging.getLogger(__name__)


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The checked configuration that these command-line overrides stand for."""
    return check(compose_job("train", overrides), names_of(parse(overrides)))


def harvest(config: dict[str, Any]) -> None:
    """Fill the cache for every layer and site of the configuration, in one LM pass a split."""
    from sae.activations.build import lm_activations, points_of
    from sae.planning import Machine, check_fits, plan_runs
    from sae.training.build import resolve_device, resolve_dtypes

    resolve_dtypes(config)
    activations, points = config["activations"], points_of(config["activations"])
    device = resolve_device(config["trainer"]["accelerator"])
    source = lm_activations(config["lm"], config["corpus"], points[0], activations, device)
    check_fits(plan_runs([config]), Machine.here(device))
    source.prepare(also=points[1:])


def train(
    config: dict[str, Any], run_dir: Path, given: Sequence[str] | None = None
) -> dict[str, Any]:
    """Harvest, train, save, evaluate and report one SAE, or continue the run in `run_dir`.

    Args:
        config: What `compose` returns.
        run_dir: The run folder (docs/formats.md).
        given: Keys that must agree with a run that is continued, the others follow it; None: all.

    Returns:
        The content of `results.json`; nothing in the processes of trainer=ddp but the first.

    Raises:
        SAEError: If anything the user gave is wrong, or another process writes into the folder.
            What was saved before stays as it was.
    """
    config = continued(run_dir, config, given)
    finished = _finished(run_dir, config)
    if finished is not None:
        if config.get("resume_with") != (saved_config(run_dir) or {}).get("resume_with"):
            raise ConfigError(
                f"resume_with has no effect: {run_dir} holds a finished run. Give more epochs, too."
            )
        more = f" epochs=… above {config['epochs']} continues it."
        log.info("%s holds a finished run.%s", run_dir, "" if _fitted(config) else more)
        return finished
    reject_lists(config)
    keep_freed_memory()

    from lightning.fabric.utilities.rank_zero import rank_zero_only

    # the other processes of trainer=ddp write nothing but their part of a checkpoint
    with owned(run_dir) if rank_zero_only.rank == 0 else nullcontext():
        return _train(config, run_dir)


def _train(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """What `train` does once the run folder is its own."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from callbacks.build import build_loggers
    from callbacks.checkpoint import (
        check_unchanged,
        checkpoint_file,
        checksum_of_curves,
        forget_previous,
        read_checkpoint,
    )
    from callbacks.manifest import Manifest
    from callbacks.trainer import build_trainer, quiet_lightning
    from sae.activations.build import build_source
    from sae.evals.build import check_evals, ctx_of, offers_of
    from sae.planning import Machine, check_fits, plan_runs
    from sae.training.build import (
        build_data,
        build_module,
        check_processes,
        check_settings,
        l1_equivalents,
        resolve_device,
        resolve_dtypes,
    )
    from sae.training.predictions import check_predictions
    from sae.training.ranks import part

    quiet_lightning()
    resolve_dtypes(config)
    settings = config["trainer"]
    device = resolve_device(settings["accelerator"])
    check_settings(config)  # mistakes come before the harvest, which may take long
    source = build_source(config["activations"], config["lm"], config["corpus"], device)
    check_evals(config["eval"], ctx_of(source), offers_of(source))
    check_fits(plan_runs([config]), Machine.here(device))
    checkpoint = read_checkpoint(run_dir)
    check_unchanged(checkpoint, source)
    seeds = {"seed": config["seed"], "activations.seed": config["activations"]["seed"]}
    manifest = Manifest(run_dir / "manifest.json", config, seeds)
    with manifest.stage("harvest"):
        source.prepare()
    check_predictions(source, config)
    if _fitted(config):
        return _fit(config, run_dir, source, manifest, device)
    data = build_data(config, source)
    module = build_module(config, data)
    start = 0 if checkpoint is None else int(checkpoint["global_step"])
    if rank_zero_only.rank == 0:
        (run_dir / FOLDER_FILE).unlink(missing_ok=True)  # what it notes will change
        save_config(run_dir, config)

    loggers = build_loggers(config, run_dir, start, checksum_of_curves(checkpoint))
    try:
        for logger in loggers:
            logger.log_hyperparams({"l1_equivalents": l1_equivalents(config, data)})
        trainer = build_trainer(config, run_dir, data, manifest, loggers)
        check_processes(trainer.world_size, settings)
        if start < data.steps:
            path = None if checkpoint is None else checkpoint_file(run_dir)
            del checkpoint
            try:
                trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
            except DivergedError as error:
                raise DivergedError(f"{error} {_mend(run_dir, config)}") from None
            part()
            meet()  # SAEs that train in lockstep: nobody measures while a neighbour trains
        elif checkpoint is not None:  # killed between the last step and the results
            module.load_state_dict(checkpoint["state_dict"])
        if rank_zero_only.rank != 0:  # the rest is one process's work
            return {}
        _save(config, run_dir, data, module)
        with manifest.stage("evaluate"):
            results = _evaluate(config, run_dir, data, device)
        results["training"] = {
            "epochs": config["epochs"],
            "tokens": data.steps * data.batch_size,
            "dead": module.dead_share(),
            "dead_after_tokens": module.dead_after_tokens,
            "revived": int(module.revived),
            "vectors_per_second": manifest.training.get("vectors_per_second"),
            **l1_equivalents(config, data),
            **module.coefficient,
        }
        _publish(results, run_dir, loggers, data.steps)
        forget_previous(run_dir)
    finally:
        for logger in loggers:
            getattr(logger, "close", lambda: None)()
    return results


def _mend(run_dir: Path, config: Mapping[str, Any]) -> str:
    """The command that goes on from the last good checkpoint at a tenth of the learning rate."""
    from sae.training.optimizers import OptimizerSettings

    rate = min(config["optimizer"]["lr"] / 10, OptimizerSettings().lr)
    change = shlex.quote(f"resume_with={{optimizer.lr: {rate:g}}}")
    return f"From the last good checkpoint: python train.py {typed('run_dir', run_dir)} {change}"


def _fitted(config: Mapping[str, Any]) -> bool:
    """Whether this is a baseline, which is fitted instead of trained."""
    return config["sae"].get("kind") == "baseline"


def _fit(
    config: dict[str, Any],
    run_dir: Path,
    source: "ActivationSource",
    manifest: "Manifest",
    device: str,
) -> dict[str, Any]:
    """Fit a baseline. The run folder is that of a training, without curves and checkpoint."""
    from callbacks.build import build_loggers
    from sae.artifacts import save_sae
    from sae.training.baselines import fit_baseline
    from sae.training.build import build_data

    data = build_data({**config, "trainer": {**config["trainer"], "validations": 0}}, source)
    save_config(run_dir, config)
    loggers = build_loggers(config, run_dir, 0)
    try:
        with manifest.session():
            with manifest.stage("fit"):
                baseline, facts = fit_baseline(config, data)
            baseline.metadata.update(_metadata(config, data) | {"fit": facts})
            save_sae(run_dir / "sae", baseline)
            with manifest.stage("evaluate"):
                results = _evaluate(config, run_dir, data, device)
        plain = {name: fact for name, fact in facts.items() if not isinstance(fact, list)}
        results["training"] = {
            "epochs": config["epochs"],
            "tokens": data.rows("train").num_rows,
            "dead": None,
            "vectors_per_second": None,
            **plain,
        }
        _publish(results, run_dir, loggers, 0)
    finally:
        for logger in loggers:
            getattr(logger, "close", lambda: None)()
    return results


def _finished(run_dir: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Results of a run that needs no more training, with its report; else None.

    Raises:
        ArtifactError: If its results are damaged, or a finished run shall go on but its checkpoint
            is gone.
    """
    file = run_dir / "results.json"
    if not os.path.lexists(file):
        return None
    check_folder(run_dir)
    try:
        results = read_object(file)
        epochs = results["training"]["epochs"]
        finished = _fitted(config) or epochs >= config["epochs"]
    except (ArtifactError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file} is damaged ({error}). Delete it: the run is then finished from its "
            "checkpoint, or choose another run_dir."
        ) from None
    from callbacks.checkpoint import checkpoint_file, forget_previous

    if finished:  # and what a kill after the results, or a full disk, left undone
        if not (run_dir / FOLDER_FILE).exists():
            _seal(run_dir)
        if not (run_dir / "report.html").exists():
            from sae.reports import write_report

            write_report(run_dir)
        forget_previous(run_dir)
        return results

    if not (file := checkpoint_file(run_dir)).exists():
        raise ArtifactError(
            f"{run_dir} holds a finished run without {file.name}, so it cannot be trained further. "
            "Choose another run_dir."
        )
    return None


def _save(
    config: Mapping[str, Any], run_dir: Path, data: "ActivationDataModule", module: "SAEModule"
) -> None:
    from sae.artifacts import save_sae
    from sae.training.build import l1_equivalents

    metadata = _metadata(config, data) | {
        "l1_equivalents": l1_equivalents(config, data),
        "tokens": data.steps * data.batch_size,
        "dead": module.dead_share(),
        "steered": module.coefficient,
    }
    save_sae(run_dir / "sae", module.dictionary.folded(data.scale, metadata))


def _metadata(config: Mapping[str, Any], data: "ActivationDataModule") -> dict[str, Any]:
    """Where a saved dictionary comes from, as far as it does not depend on the training."""
    names = ("sae", "seed", "eval") if _fitted(config) else (
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
    config: Mapping[str, Any], run_dir: Path, data: "ActivationDataModule", device: str
) -> dict[str, Any]:
    """Measure the artifact that was saved, not the module in memory."""
    from sae.artifacts import load
    from sae.evals.build import run_evals

    evaluated = run_evals(load(run_dir / "sae"), data.source, config["eval"], device)
    return {name: result.with_tables(run_dir) for name, result in evaluated.items()}


def _publish(results: dict[str, Any], run_dir: Path, loggers: list[Any], step: int) -> None:
    """To every logger, to `results.json` (last: it marks the run as finished), report, screen."""
    from callbacks.dashboard import Dashboard
    from sae.reports import print_summary, results_table, write_report
    from sae.training.divergence import WORST_FVU

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
    """What a sweeper minimises: FVU and L0 on the test split; None where they were not measured."""
    metrics = results.get("core", {}).get("metrics", {})
    found = [metrics.get(name, {}).get("value") for name in ("fvu", "l0")]
    return None if None in found else (found[0], found[1])


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> Any:
    """One job: compose has happened, check, then harvest or train. Returns its `objectives`."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    multirun = job.mode == RunMode.MULTIRUN
    try:
        with handling():
            given = names_of(parse(list(job.overrides.task)))
            config = check(composed, given)
            if config["harvest_only"]:
                return harvest(config)
            (run_dir / "error.txt").unlink(missing_ok=True)
            return objectives(train(config, run_dir, given))
    except Interrupted as stopped:
        if stopped.code:
            where = f"sweep_dir={run_dir.parent}" if multirun else f"run_dir={run_dir}"
            sys.stderr.write(f"Stopped by {stopped}. The same command with {where} continues.\n")
        raise SystemExit(stopped.code) from None
    except Exception as error:
        if not multirun:
            fail(error)
        # the other jobs of the sweep go on; the program's exit status tells in the end
        run_dir.mkdir(parents=True, exist_ok=True)
        error = explained(error) or error
        text = str(error) if isinstance(error, SAEError) else traceback.format_exc()
        told = f"{type(error).__name__}: {text}\n"
        try:
            (run_dir / "error.txt").write_text(told, encoding="utf-8")
        except OSError:  # a disk that refuses even this: the sweep must not end as if it were well
            fail(error)
        log.error("Job %s failed: %s: %s", job.job.num, type(error).__name__, text)
        return None


if __name__ == "__main__":
    ensemble.register()
    run_program("train", main)
