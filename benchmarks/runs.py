"""The project's own runs for benchmarks: configurations, prepared data, temporary folders."""

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae.activations.datamodule import ActivationDataModule
from sae.activations.from_config import build_source
from sae.training.from_config import build_data, resolve_device, resolve_dtypes
from train import compose

QUICK = ("debug=tiny", "callbacks.downstream.num_tokens=64")
"""A tiny random LM and random words."""


def configuration(overrides: Sequence[str], quick: bool) -> dict[str, Any]:
    """The configuration of `python train.py <overrides>`, W&B off."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 with torch 2.13
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    config = compose([*(QUICK if quick else ()), "logger=none", *overrides])
    resolve_dtypes(config)
    return config


def prepared_data(config: dict[str, Any]) -> ActivationDataModule:
    """The data of a run; harvested into the configured cache where it is not there yet."""
    device = resolve_device(config["trainer"]["accelerator"])
    source = build_source(config["activations"], config["lm"], config["corpus"], device)
    source.prepare()
    return build_data(config, source)


@contextmanager
def temporary_cache(wanted: bool = True) -> Iterator[Path]:
    """A cache folder that is deleted afterwards; the configured one where it is not wanted."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("SAE_CACHE")
        if wanted:
            os.environ["SAE_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            if before is not None:
                os.environ["SAE_CACHE"] = before
            elif wanted:
                del os.environ["SAE_CACHE"]
