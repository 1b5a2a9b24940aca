"""From plain configuration to callbacks and loggers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from callbacks.dead_features import DeadFeatures
from callbacks.downstream import DownstreamPerplexity
from callbacks.features import Features
from callbacks.metrics_csv import MetricsCSV
from callbacks.reconstruction import Reconstruction
from callbacks.wandb_logger import make_wandb_logger
from sae.activations.datamodule import ActivationDataModule
from sae.activations.from_config import ends_of
from sae.activations.sources import LMActivations
from sae.dictionaries.from_config import sparsity_of
from sae.errors import ConfigError
from sae.features.watched import WatchedText


def build_watchers(
    settings: Mapping[str, Mapping[str, Any]], data: ActivationDataModule
) -> list[L.Callback]:
    """The measuring callbacks of conf/callbacks/*.yaml, by their names.

    Raises:
        ConfigError: If a name is unknown.
    """
    makers = {
        "dead_features": lambda: DeadFeatures(),
        "reconstruction": lambda: Reconstruction(lambda: data.mean_of("val")),
        "downstream": lambda **given: _downstream(data, **given),
        "features": lambda **given: Features(
            WatchedText(data.source, data.rows("val")),  # pyright: ignore[reportArgumentType]
            **given,
        ),
    }
    if unknown := sorted(set(settings) - set(makers)):
        raise ConfigError(f"callbacks {unknown} are not known. Choose from {sorted(makers)}.")
    if not isinstance(data.source, LMActivations):  # there are no tokens
        makers.pop("downstream")
        makers.pop("features")
    return [makers[word](**(given or {})) for word, given in settings.items() if word in makers]


def _downstream(data: ActivationDataModule, **settings: Any) -> DownstreamPerplexity:
    source = data.source
    assert isinstance(source, LMActivations)
    return DownstreamPerplexity(
        lambda: source.load_lm(source.device),
        source.store("val"),
        source.ends,
        data.mean_of("val"),  # no metric reads training text
        counted=data.counted,
        **settings,
    )


def build_loggers(
    config: Mapping[str, Any], run_dir: Path, start_step: int, checksum: int | None = None
) -> list[Logger]:
    """`metrics.csv`, and W&B unless it is off.

    Args:
        config: The whole configuration.
        run_dir: The run folder.
        start_step: Optimiser steps done by the checkpoint that training starts from.
        checksum: Checksum of `metrics.csv` when the checkpoint was made.
    """
    wanted = config["logger"]
    sweep = run_dir.parent.name if (run_dir.parent / "multirun.yaml").exists() else None
    # Lightning numbers steps from 0: the row of the last finished step is one below their count
    loggers: list[Logger] = [MetricsCSV(run_dir / "metrics.csv", start_step - 1, checksum)]
    wandb = make_wandb_logger(
        wanted["wandb"],
        folder=run_dir,
        project=wanted["project"],
        entity=wanted["entity"],
        group=wanted["group"] or sweep,
        name=wanted["name"] or run_name(config),
        config=config,
    )
    return loggers if wandb is None else [*loggers, wandb]


def run_name(config: Mapping[str, Any]) -> str:
    """A name that tells a run from its neighbours in a sweep.

    Example:
        >>> run_name({"sae": {"architecture": "tied", "l1": 1e-3, "dict_ratio": 8}, "seed": 0,
        ...           "activations": {"site": "resid", "layer": 4}})
        'tied-resid.4-l1=0.001-x8-seed0'
    """
    sae, activations = config["sae"], config["activations"]
    kind = "own" if activations.get("kind") == "folder" else activations.get("kind")
    where = str(ends_of(activations)) if "site" in activations else kind
    sparsity = sparsity_of(sae)
    size = [f"x{sae['dict_ratio']:g}"] if "dict_ratio" in sae else []
    size += ["e2e"] if config.get("e2e") else []
    parts = [sae["architecture"], where, *sparsity, *size]
    return "-".join([*parts, f"seed{config['seed']}"])
