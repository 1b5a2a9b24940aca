"""Check a whole command line, every job of a sweep, before Hydra runs it."""

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from conf.compose import compose_job, compose_with_hydra, jobs, names_of, parse, sweep_jobs
from conf.effects import check_fitting, refuse_serving, several
from conf.quoting import quoted
from conf.resume import continued
from conf.schema import check, in_full
from sae.errors import ConfigError
from sae.failures import explained, fail
from sae.owner import new_folder
from sae.settings import shown
from sae.training.settings import TrainerSettings

__all__ = ["as_sweep", "check_command_line", "explained", "parse", "run_program"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_HYDRAS_OWN = (
    "hydra_help", "shell_completion", "config_path", "config_name", "config_dir",
    "experimental_rerun", "info",
)  # fmt: skip
"""Flags that ask for another configuration, or for none: Hydra's own checks must do."""


def check_command_line(config_name: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Check the whole command line, every job of a sweep included, before anything starts.

    Returns:
        The configuration of every job; none where only Hydra itself is asked.

    Raises:
        ConfigError: If something is wrong; the message tells the first mistake.
    """
    flags = _flags(arguments)
    if any(getattr(flags, name) for name in _HYDRAS_OWN):
        return []
    own = _own(flags)
    first = compose_with_hydra(config_name, tuple(jobs(own)[0]))
    multirun = _is_multirun(flags, first)
    _check_folders(own, multirun)
    swept = [o.input_line for o in own if o.is_sweep_override()]
    if swept and not multirun:
        raise ConfigError(
            f"{swept[0]} names several values. Sweep over them with -m, "
            "or quote a list as 'key=[a,b]'."
        )
    if multirun:
        _check_ranges(own, first.hydra.sweeper)
    configs = []
    for job in sweep_jobs(own, first.hydra.sweeper.get("params") if multirun else None):
        composed = compose_job(config_name, job)
        if flags.cfg:
            continue
        given = names_of(parse(job))
        config = check(composed, given)
        if config_name == "train" or multirun:
            refuse_serving(config, "not for a sweep" if multirun else "not for a training")
        if config_name == "train" and multirun:
            _check_job(config)
        elif config_name == "train":
            check_fitting(config, given)
            # Hydra writes into the folder before the program can look at what it holds
            config = continued(Path(config["run_dir"]), config, given)
        configs.append(config)
    return configs


def as_sweep(arguments: Sequence[str]) -> list[str]:
    """A command line of train.py that lists values, as the sweep that it stands for.

    Its jobs train from one read (conf/ensemble.py), unless it names another launcher. Lists of a
    harvest, and whatever is a sweep already, stay as they are.

    Raises:
        ConfigError: If it cannot be read or composed.
    """
    flags = _flags(arguments)
    if flags.multirun or flags.cfg or flags.help or any(getattr(flags, n) for n in _HYDRAS_OWN):
        return list(arguments)
    own = _own(flags)
    config = compose_job("train", jobs(own)[0])
    listed = {} if OmegaConf.is_missing(config, "sae") else several(config)
    if not listed or config.harvest_only or not all(listed.values()):
        return list(arguments)
    lists = {o.input_line for o in own if o.key_or_group in listed}
    words = [
        word.replace("run_dir=", "sweep_dir=", 1) if word.startswith("run_dir=") else word
        for word in arguments
        if word not in lists
    ]
    words += [f"{name}={','.join(map(shown, values))}" for name, values in listed.items()]
    return ["-m", *words, *([] if "launcher" in _groups(own) else ["launcher=ensemble"])]


def run_program(config_name: str, program: Any) -> None:
    """Run a Hydra main with errors that a user can read, and no traceback for theirs."""
    _require_utf8()
    folder = ""
    try:
        if config_name == "train":
            sys.argv[1:] = as_sweep(sys.argv[1:])
        if _answers(config_name, _flags(sys.argv[1:])):
            return
        configs = check_command_line(config_name, sys.argv[1:])
        if configs and config_name == "train":
            folder = _prepare(configs)
            if not folder:
                return
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or it would print tracebacks and leave
        program()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error.filename = folder or None  # Hydra wrote its files there, and names none
        fail(error)


def _answers(config_name: str, flags: Namespace) -> bool:
    """Answer `--help` or `--cfg job`, without a part and without Hydra's own start; else False."""
    if any(getattr(flags, name) for name in (*_HYDRAS_OWN, "package")):
        return False
    if flags.help:
        print(compose_with_hydra(config_name, ()).hydra.help.template)
    elif flags.cfg == "job":
        (job, *_) = jobs(_own(flags))
        config = in_full(compose_job(config_name, job), names_of(parse(job)))
        print(yaml.safe_dump(config, sort_keys=False))
    return flags.help or flags.cfg == "job"


def _prepare(configs: Sequence[dict[str, Any]]) -> str:
    """Choose the folder of a run or a sweep of train.py; "" if only its plan was asked for."""
    flags = _flags(sys.argv[1:])
    own = _own(flags)
    resolve(configs, hand_down=True)
    if configs[0]["plan"]:  # Hydra does not even start: it would make the run folder
        from sae.planning import Machine, plan_runs, print_plan

        plan = plan_runs(configs, together="launcher=ensemble" in names_of(own))
        print_plan(plan, Machine.here(plan.device))
        return ""
    sys.argv[1:] = _in_own_folder(sys.argv[1:], configs[0])
    return configs[0]["sweep_dir" if len(configs) > 1 else "run_dir"]


def _in_own_folder(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The command line, with the folder that was made for it where it names none.

    The folder is chosen here, once, before Hydra writes into it.
    """
    flags = _flags(arguments)
    composed = compose_with_hydra("train", tuple(jobs(_own(flags))[0]))
    multirun = _is_multirun(flags, composed)
    name, hydras = ("sweep_dir", "sweep") if multirun else ("run_dir", "run")
    raw: Any = OmegaConf.to_container(composed, resolve=False)
    elsewhere = any(word.startswith(f"hydra.{hydras}.dir=") for word in arguments)
    if "${now:" not in str(raw[name]) or elsewhere:
        return list(arguments)
    if TrainerSettings(**config["trainer"]).processes > 1 and _processes_started() > 1:
        return list(arguments)  # the processes of one run must not have a folder each
    # overrides must stand together
    before = arguments.index(flags.overrides[0]) if flags.overrides else len(arguments)
    folder = quoted(name, str(new_folder(Path(config[name]))))
    return [*arguments[:before], folder, *arguments[before:]]


def _processes_started() -> int:
    """Processes that a cluster or torchrun started with this command line."""
    return max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def resolve(configs: Sequence[dict[str, Any]], hand_down: bool = False) -> None:
    """Put into each configuration of train.py what `auto` means as a dtype on this machine.

    Args:
        configs: Checked; changed in place.
        hand_down: Processes that this one starts (jobs, ranks) are to take it over.
    """
    words = [(config["lm"].get("dtype"), config["trainer"]["precision"]) for config in configs]
    if not any("auto" in word for word in words):  # what follows takes seconds to import
        return
    from sae import dtypes
    from sae.training.from_config import resolve_dtypes

    for config in configs:
        resolve_dtypes(config)
    if hand_down:
        dtypes.hand_down()


def _require_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale is another.

    Paths of the command line and of configurations would not be those on the disk otherwise.
    """
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8"):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _flags(arguments: Sequence[str]) -> Namespace:
    """Hydra's flags and the overrides.

    Raises:
        ConfigError: If a flag is unknown.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}. Write key=value; --help lists what there is.")

    parser.error = refuse
    return parser.parse_args(list(arguments))


def _own(flags: Namespace) -> list[Override]:
    """The overrides that are not for Hydra."""
    return [o for o in parse(flags.overrides) if not o.key_or_group.startswith("hydra")]


def _groups(overrides: Sequence[Override]) -> list[str]:
    return [override.key_or_group for override in overrides]


def _is_multirun(flags: Any, composed: DictConfig) -> bool:
    given = [o.value() for o in parse(flags.overrides) if o.key_or_group == "hydra.mode"]
    return flags.multirun or "MULTIRUN" in str(composed.hydra.mode or given)


def _check_folders(overrides: Sequence[Override], multirun: bool) -> None:
    wrong, right = ("run_dir", "sweep_dir") if multirun else ("sweep_dir", "run_dir")
    if wrong in _groups(overrides):
        which = "a sweep" if multirun else "one run; only a sweep (-m) has a sweep_dir"
        raise ConfigError(f"{wrong} has no effect on {which}. Give {right}=… instead.")


def searches(sweeper: Mapping[str, Any]) -> bool:
    """True if this sweeper chooses values of its own, so that the jobs cannot be listed."""
    return "Optuna" in sweeper["_target_"]


def _check_ranges(overrides: Sequence[Override], sweeper: Mapping[str, Any]) -> None:
    ranges = [o.input_line for o in overrides if o.is_interval_sweep()]
    if ranges and not searches(sweeper):
        raise ConfigError(
            f"{ranges[0]} is a range. List the values: key=a,b,c, or search it with sweeper=optuna."
        )
    swept = sweeper.get("params") or any(o.is_sweep_override() for o in overrides)
    if searches(sweeper) and not swept:
        raise ConfigError(
            "sweeper=optuna has nothing to search. Give a range, such as "
            "'l1=tag(log,interval(1e-4,1e-2))' or 'k=tag(log,int(interval(8,128)))'."
        )


def _check_job(config: Mapping[str, Any]) -> None:
    """Refuse what a job of a sweep cannot do.

    Lightning starts further processes with this command line: with -m, each would sweep.
    """
    trainer = TrainerSettings(**config["trainer"])
    if trainer.processes > 1:
        raise ConfigError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes} means "
            "several processes, which a sweep (-m) cannot start for its jobs. Use "
            "trainer.devices=1 with launcher=joblib or launcher=submitit, a device for each job, "
            "or start single runs with trainer=ddp (docs/guides/cluster.md)."
        )
    if config["resume_with"] is not None:
        raise ConfigError(
            "resume_with has no effect on a sweep. Continue its jobs one by one: "
            "run_dir=<sweep_dir>/<number>."
        )
