"""Reads the checkpoint of a run: the last one, or the one before where that is damaged."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from sae.activations.contexts import ContextDataModule
from sae.activations.datamodule import ActivationDataModule, check_same_data
from sae.activations.sources import ActivationSource
from sae.checksums import check_zip
from sae.errors import ArtifactError
from sae.intact import require_content

CURVES = "metrics.csv"
"""Key of a checkpoint under which it keeps the checksum of that file."""
log = logging.getLogger(__name__)


def checkpoint_file(run_dir: Path) -> Path:
    """Path of the checkpoint of a run."""
    return run_dir / "checkpoints" / "last.ckpt"


def read_checkpoint(run_dir: Path) -> dict[str, Any] | None:
    """The checkpoint of a run, None where there is none yet.

    One that is damaged gives way to the one before it, which then is `last.ckpt`.

    Raises:
        ArtifactError: If it is damaged, and no earlier one is whole.
    """
    last, previous = checkpoint_file(run_dir), previous_file(checkpoint_file(run_dir))
    damage: ArtifactError | None = None
    # the last one once more: another rank may have put the previous one in its place meanwhile
    for file in (last, previous, last):
        if not file.exists():
            continue
        try:
            content = _read(file)
        except ArtifactError as error:
            damage = damage or error
            continue
        if file == previous:
            if damage is not None:
                step = content["global_step"]
                log.warning("%s The checkpoint before it, of step %d, is used.", damage, step)
            if rank_zero_only.rank == 0:
                os.replace(previous, last)
        return content
    if damage is not None:
        raise ArtifactError(
            f"{damage} Delete it to train from the start, or choose another run_dir."
        ) from damage
    return None


def checksum_of_curves(checkpoint: Mapping[str, Any] | None) -> int | None:
    """Checksum of `metrics.csv` when the checkpoint was made; None in one of an earlier version."""
    return None if checkpoint is None else checkpoint.get(CURVES)


def forget_previous(run_dir: Path) -> None:
    """Remove the checkpoint before the last one: the run is finished."""
    previous_file(checkpoint_file(run_dir)).unlink(missing_ok=True)


def previous_file(last: Path) -> Path:
    """Path of the checkpoint before the last one, while the run is under way."""
    return last.with_name("previous.ckpt")


def _read(file: Path) -> dict[str, Any]:
    require_content(file, ArtifactError)
    check_zip(file)
    try:
        content = torch.load(file, weights_only=True, mmap=True)
    except Exception as error:  # bytes that are no pickle can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"{file} is damaged ({reason}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("global_step"), int):
        raise ArtifactError(f"{file} is not the checkpoint of a run.")
    return content


def check_unchanged(checkpoint: Mapping[str, Any] | None, source: ActivationSource) -> None:
    """Refuse to continue on other activations, before they are harvested.

    Raises:
        StoreError: If the LM, the text or the folder behind them changed since.
    """
    names = (kind.__qualname__ for kind in (ActivationDataModule, ContextDataModule))
    state = next((checkpoint[name] for name in names if checkpoint and name in checkpoint), None)
    if state is not None:
        check_same_data(state["data"], source)
