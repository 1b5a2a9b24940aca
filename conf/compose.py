"""Compose configurations with Hydra: of one job, or of every job of a sweep."""

import copy
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from conf.options import DELTAS, FOLDER, is_delta, options
from conf.quoting import how_to_quote
from conf.settings import PROGRAMS, register
from sae.errors import ConfigError, unknown

_PLUGINS = {"hydra/launcher/submitit": "slurm", "hydra/sweeper/optuna": "optuna"}
register()


def parse(arguments: Iterable[str]) -> list[Override]:
    """Parse words of a command line as overrides.

    Raises:
        ConfigError: If a word does not follow Hydra's grammar.
    """
    parser = OverridesParser.create()
    overrides = []
    for word in arguments:
        try:
            (override,) = parser.parse_overrides([word])
            if not override.key_or_group.strip("/@. "):
                raise ValueError("no key")
            overrides.append(override)
        except (HydraException, ValueError, RecursionError):  # 6,000 digits, 1,000 brackets
            hint = " A list must not end in a comma." if word.endswith(",") else ""
            if not hint and (quotes := how_to_quote(word)):
                hint = f" If its value is one text, such as a path, quote it twice: {quotes}"
            raise ConfigError(
                f"{word} cannot be read.{hint} Write key=value and quote lists: 'layer=[2,4]'."
            ) from None
    return overrides


def names_of(overrides: Iterable[Override]) -> list[str]:
    """Keys and groups that the overrides set; of `experiment=paper` and its like, the whole word.

    Example:
        >>> names_of(parse(["l1=1e-3", "sae=topk", "debug=tiny"]))
        ['l1', 'sae', 'debug=tiny']
    """
    return [
        f"{override.key_or_group}={override.value()}"
        if is_delta(override.key_or_group)
        else override.key_or_group
        for override in overrides
    ]


def jobs(overrides: Iterable[Override]) -> list[list[str]]:
    """Override lists of the jobs that a sweep over `overrides` runs, in job order.

    The two ends of a range that is searched stand for all its values.

    Raises:
        ConfigError: If one of them cannot be listed.
    """
    overrides = list(overrides)
    listed = [end for override in overrides for end in _ends(override)]
    try:
        batches = BasicSweeper.split_arguments(listed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(f"{error}. List the values: key=a,b,c or key=range(0,3).") from None
    found = [list(job) for batch in batches for job in batch]
    if not found:
        swept = " ".join(o.input_line or "" for o in overrides if o.is_sweep_override())
        raise ConfigError(f"{swept} has no values. List them: key=a,b,c or key=range(0,3).")
    return found


def sweep_jobs(overrides: Iterable[Override], params: Mapping[str, Any] | None) -> list[list[str]]:
    """The jobs of a sweep whose values partly come from `hydra.sweeper.params`.

    Args:
        overrides: Overrides on the command line, which win.
        params: Swept values by key, as in conf/sweep/*.yaml.
    """
    words = [f"{name}={value}" for name, value in (params or {}).items()]
    return jobs([*parse(words), *overrides])


def _ends(override: Override) -> list[Override]:
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return [override]
    return parse([f"{override.key_or_group}={value.start},{value.end}"])


def compose_job(config_name: str, job: Iterable[str]) -> DictConfig:
    """Compose one job's configuration, inside or outside a running Hydra; each job only once.

    Raises:
        ConfigError: If it cannot be composed; misspelt keys get a suggestion.
    """
    config = copy.deepcopy(compose_with_hydra(config_name, tuple(job)))
    with open_dict(config):
        config.pop("hydra", None)
    return config


@cache
def compose_with_hydra(config_name: str, job: tuple[str, ...]) -> DictConfig:
    """The configuration with Hydra's own part. Whoever changes it must copy it.

    Raises:
        ConfigError: As `compose_job`.
    """
    overrides = parse(job)
    for override in overrides:
        _check_key_and_option(config_name, override)
    of_evals = [o for o in overrides if o.key_or_group.startswith("eval.")]
    if of_evals:  # their nodes are open, and would become evaluations that nobody chose
        rest = tuple(o.input_line or "" for o in overrides if o not in of_evals)
        chosen = compose_with_hydra(config_name, rest)
        there = [] if OmegaConf.is_missing(chosen, "eval") else list(chosen.eval)
        for name in (o.key_or_group.split(".")[1] for o in of_evals):
            if name not in there:
                raise ConfigError(unknown(name, there, "eval."))
    try:
        if GlobalHydra.instance().is_initialized():
            config = compose(config_name, list(job), return_hydra_config=True)
        else:
            with initialize_config_dir(str(FOLDER), version_base="1.3"):
                config = compose(config_name, list(job), return_hydra_config=True)
    except Exception as error:  # Hydra raises ValueError, TypeError and more for odd words
        raise ConfigError(_in_our_words(overrides, str(error))) from None
    return config


def _check_key_and_option(config_name: str, override: Override) -> None:
    """Refuse an unknown key of the top level and an unknown option of a group."""
    key, known = override.key_or_group, options(override.key_or_group)
    keys = [*PROGRAMS[config_name].model_fields, *(DELTAS if config_name == "train" else ())]
    in_delta = known and is_delta(key)
    if not (key.partition(".")[0] in keys or in_delta or key.startswith("hydra") or "@" in key):
        raise ConfigError(unknown(key, keys))
    wanted = override.value()
    if known and not override.is_delete() and wanted is None:
        raise ConfigError(
            f"{override.input_line} is not a choice. Choose one of {', '.join(known)}; without it, "
            "the default is used."
        )
    for option in wanted if isinstance(wanted, list) else [wanted]:
        if known and isinstance(option, str) and option not in known:
            raise ConfigError(
                f"{key}={option} is not known. Available options in '{key}': {' '.join(known)}."
            )


def _in_our_words(overrides: Iterable[Override], message: str) -> str:
    for override in overrides:
        key = override.key_or_group
        if override.is_delete() and f"{key}'" in message:
            return f"~{key}: nothing sets {key}, or it is needed: it cannot be removed."
    for plugin, extra in _PLUGINS.items():
        if f"Could not find '{plugin}" in message:
            return f'{plugin} is not installed: pip install "lightning-sae[{extra}]"'
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    noise = ("HYDRA_FULL_ERROR", "search path", "provider=")
    keep = [line for line in lines if not any(word in line for word in noise)]
    return " ".join(keep[:24])
