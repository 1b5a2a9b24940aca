"""A folder of its own for every run, also for those that start in the same second."""

import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from conf.quoting import quoted

_CLOCK = "${now:"


def claimed(
    arguments: Sequence[str], composed: DictConfig, config: Mapping[str, Any], multirun: bool
) -> list[str]:
    """The command line, with the folder that was made for it where it names none.

    The folder is chosen here, once, before Hydra writes into it: `mkdir` gives each name to one
    process only, the next gets `-2`, `-3`, …

    Args:
        arguments: Of train.py.
        composed: Their configuration, not resolved, with Hydra's own part.
        config: The same, checked.
        multirun: Whether it is a sweep, which has a `sweep_dir`.
    """
    name, hydras = ("sweep_dir", "sweep") if multirun else ("run_dir", "run")
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    elsewhere = any(word.startswith(f"hydra.{hydras}.dir=") for word in arguments)
    if _CLOCK not in str(raw[name]) or elsewhere:
        return list(arguments)
    trainer = config["trainer"]
    if trainer["devices"] * trainer["num_nodes"] > 1 and _processes_started() > 1:
        return list(arguments)  # the processes of one run must not have a folder each
    words = get_args_parser().parse_args(list(arguments)).overrides
    before = arguments.index(words[0]) if words else len(arguments)  # overrides stand together
    folder = quoted(name, str(_new_folder(Path(config[name]))))
    return [*arguments[:before], folder, *arguments[before:]]


def _new_folder(wanted: Path) -> Path:
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() has no end")


def _processes_started() -> int:
    """Processes that a cluster or torchrun started with this command line."""
    return max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
