"""Compose every job of a command line before Hydra runs it: errors come early and read well."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.schema import check
from sae.errors import ConfigError, SAEError

FOLDER = Path(__file__).parent
_FLAGS_WITH_VALUE = {"--cfg", "-c", "--package", "-p"}
_MOST_JOBS = 64


def parse(arguments: Sequence[str]) -> list[Override]:
    """Overrides among the command-line arguments.

    Raises:
        ConfigError: If an argument does not follow Hydra's grammar.
    """
    words, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.startswith("-"):
            skip = argument in _FLAGS_WITH_VALUE
        else:
            words.append(argument)
    try:
        return OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        what = str(error).splitlines()[0].partition(": ")[2] or str(error)
        raise ConfigError(
            f"{what} cannot be read. Write key=value and quote lists: 'layer=[2,4]'. Text with "
            "apostrophes or brackets goes into a file: corpus=text corpus.path=…"
        ) from None


def jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Override lists of the jobs that a sweep over `overrides` runs, in job order."""
    batches = BasicSweeper.split_arguments(list(overrides), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def compose_job(config_name: str, job: Sequence[str]) -> DictConfig:
    """Compose one job's configuration, inside or outside a running Hydra.

    Raises:
        ConfigError: With a suggestion where a key or an option is misspelt.
    """
    try:
        if GlobalHydra.instance().is_initialized():
            return compose(config_name, overrides=list(job))
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            return compose(config_name, overrides=list(job))
    except (HydraException, OmegaConfBaseException) as error:
        raise _explained(config_name, job, error) from None


def names_of(overrides: Sequence[Override]) -> list[str]:
    """Keys and groups that the overrides set."""
    return [override.key_or_group for override in overrides]


def check_command_line(config_name: str, arguments: Sequence[str]) -> None:
    """Check the whole command line, every job of a sweep included, before anything starts.

    Raises:
        ConfigError: At the first mistake.
    """
    if any(a.startswith(("--config", "-cn", "-cp", "-cd", "--hydra-help")) for a in arguments):
        return  # another configuration folder: Hydra's own checks must do
    overrides = parse(arguments)
    if not ({"-m", "--multirun"} & set(arguments)):
        swept = [o.input_line for o in overrides if o.is_sweep_override() and not _is_hydra(o)]
        if swept and not any(o.key_or_group == "sweep" for o in overrides):
            raise ConfigError(
                f"{swept[0]} names several values. Sweep over them with -m, "
                "or quote a list as 'key=[a,b]'."
            )
    own = [o for o in overrides if not _is_hydra(o)]
    for job in jobs(own)[:_MOST_JOBS]:
        config = compose_job(config_name, job)
        if not ({"--cfg", "-c", "--help", "-h"} & set(arguments)):
            check(config, names_of(own))


def run_program(config_name: str, program: Any) -> None:
    """Run a Hydra main with errors that a user can read, and no traceback for theirs."""
    try:
        check_command_line(config_name, sys.argv[1:])
        program()
    except SAEError as error:
        fail(error)


def fail(error: SAEError) -> None:
    """Print the error and leave with status 1."""
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    raise SystemExit(1)


def _is_hydra(override: Override) -> bool:
    return override.key_or_group.startswith("hydra")


def _explained(config_name: str, job: Sequence[str], error: Exception) -> ConfigError:
    """The error with the allowed keys, or with Hydra's own list of options."""
    message = str(error)
    for override in parse(job):
        key = override.key_or_group
        known = _known_keys(config_name, key)
        if known and key.rpartition(".")[2] not in known and override.key_or_group in message:
            close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            where = key.rpartition(".")[0] or config_name
            return ConfigError(
                f"{key} is not known.{hint} {where} has: {', '.join(sorted(known))}."
            )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    noise = ("HYDRA_FULL_ERROR", "search path", "provider=")
    keep = [line for line in lines if not any(word in line for word in noise)]
    return ConfigError(" ".join(keep[:24]))


def _known_keys(config_name: str, key: str) -> list[str]:
    """Keys beside `key` in the configuration without overrides; [] where its parent is unknown."""
    try:
        node: Any = (
            compose(config_name)
            if GlobalHydra.instance().is_initialized()
            else _compose_outside(config_name)
        )
    except (HydraException, OmegaConfBaseException):
        return []
    for part in key.split(".")[:-1]:
        node = node.get(part) if OmegaConf.is_dict(node) and part in node else None
    return [str(name) for name in node] if OmegaConf.is_dict(node) else []


def _compose_outside(config_name: str) -> DictConfig:
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return compose(config_name)
