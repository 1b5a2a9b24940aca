"""Train a sparse autoencoder on the activations of a language model.

    python train.py layer=4 l1=1e-3 dict_ratio=8

From Python: `train(compose(["layer=4", "l1=1e-3"]), Path("my_run"))`.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from callbacks.interruption import Interrupted, end_with_parent, handling
from conf import ensemble
from conf.commandline import run_program
from conf.compose import names_of, parse
from conf.effects import reject_lists
from conf.resume import continued, how_to_go_on, save_config, tell_finished
from conf.schema import check, checked_job
from sae.errors import DivergedError
from sae.failures import fail, note_failure
from sae.memory import keep_freed_memory
from sae.owner import owned


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The checked configuration that these command-line overrides stand for."""
    return checked_job(overrides)


def harvest(config: dict[str, Any]) -> None:
    """Fill the cache for every layer and site of the configuration, in one LM pass a split."""
    from sae import recipes

    recipes.harvest(config)


def train(
    config: dict[str, Any], run_dir: Path, given: Sequence[str] | None = None
) -> dict[str, Any]:
    """Harvest, train, save, evaluate and report one SAE, or continue the run in `run_dir`.

    Args:
        config: Configuration that `compose` returned.
        run_dir: The run folder (docs/reference/formats.md).
        given: Keys that must agree with a run that is continued, the others follow it; None: all.

    Returns:
        The content of `results.json`; nothing in the processes of trainer=ddp but the first.

    Raises:
        SAEError: If anything the user gave is wrong, or another process writes into the folder.
            What was saved before stays as it was.
    """
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from sae import recipes

    config = continued(run_dir, config, given)
    if (results := recipes.finished(run_dir, config)) is not None:
        tell_finished(run_dir, config)
        return results
    reject_lists(config)
    keep_freed_memory()
    if rank_zero_only.rank != 0:  # writes nothing but its part of a checkpoint
        end_with_parent(os.getppid())  # it would wait half an hour for a first one that is gone
        return _train(config, run_dir)
    with owned(run_dir):
        return _train(config, run_dir)


def _train(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Train or fit in a run folder that is this process's own."""
    from callbacks.trainer import build_tools
    from sae import recipes

    recipes.resolve_dtypes(config)
    tools = build_tools(config, run_dir, begin=partial(save_config, run_dir, config))
    try:
        return recipes.run(config, run_dir, tools)
    except DivergedError as error:
        raise DivergedError(f"{error} {how_to_go_on(run_dir, config)}") from None


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(composed: DictConfig) -> Any:
    """One job: compose has happened, check, then harvest or train. Returns its `objectives`."""
    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    multirun = str(job.mode).endswith("MULTIRUN")
    try:
        with handling():
            given = names_of(parse(list(job.overrides.task)))
            config = check(composed, given)
            if config["harvest_only"]:
                return harvest(config)
            from sae.recipes import objectives

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
        return note_failure(run_dir, error)


if __name__ == "__main__":
    ensemble.register()
    run_program("train", main)
