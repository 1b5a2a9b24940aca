"""Compose every job of a command line before Hydra runs it: errors come early and read well."""

import copy
import difflib
import errno
import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from conf.claims import claimed
from conf.quoting import how_to_quote
from conf.runs import continued
from conf.schema import check, options, reject_untrained, several
from sae.errors import ArtifactError, ConfigError, SAEError
from sae.settings import shown
from sae.writing import refusal

log = logging.getLogger(__name__)
FOLDER = Path(__file__).parent
_FULL = (errno.ENOSPC, errno.EDQUOT)
OPTIONS = ("experiment", "sweep", "launcher", "sweeper", "debug")
"""Groups whose files set keys all over the configuration."""


def parse(arguments: Sequence[str]) -> list[Override]:
    """The overrides that these words are.

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


def jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """Override lists of the jobs that a sweep over `overrides` runs, in job order.

    Of a range that is searched, its two ends stand for all values.

    Raises:
        ConfigError: If one of them cannot be listed.
    """
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


def searches(sweeper: Mapping[str, Any]) -> bool:
    """Whether this sweeper chooses values of its own, so that the jobs cannot be listed."""
    return "Optuna" in sweeper["_target_"]


def sweep_jobs(overrides: Sequence[Override], params: Mapping[str, Any] | None) -> list[list[str]]:
    """The jobs of a sweep whose values partly come from `hydra.sweeper.params`.

    Args:
        overrides: What the command line sets; it wins.
        params: Swept values by key, as in conf/sweep/*.yaml.
    """
    words = [f"{name}={value}" for name, value in (params or {}).items()]
    return jobs([*parse(words), *overrides])


def compose_job(config_name: str, job: Sequence[str]) -> DictConfig:
    """Compose one job's configuration, inside or outside a running Hydra; each job only once.

    Raises:
        ConfigError: With a suggestion where a key or an option is misspelt.
    """
    config = copy.deepcopy(_compose(config_name, tuple(job)))
    with open_dict(config):
        config.pop("hydra", None)
    return config


def names_of(overrides: Sequence[Override]) -> list[str]:
    """Keys and groups that the overrides set; of `experiment=paper` and its like, the whole word.

    Example:
        >>> names_of(parse(["l1=1e-3", "sae=topk", "debug=tiny"]))
        ['l1', 'sae', 'debug=tiny']
    """
    return [
        f"{override.key_or_group}={override.value()}"
        if override.key_or_group in OPTIONS
        else override.key_or_group
        for override in overrides
    ]


def check_command_line(config_name: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Check the whole command line, every job of a sweep included, before anything starts.

    Returns:
        The configuration of every job; none where only Hydra itself is asked.

    Raises:
        ConfigError: At the first mistake.
    """
    flags = _flags(arguments)
    if any(getattr(flags, name) for name in _HYDRAS_OWN):
        return []  # another configuration, or none: Hydra's own checks must do
    overrides = parse(flags.overrides)
    own = [o for o in overrides if not o.key_or_group.startswith("hydra")]
    first = _compose(config_name, tuple(jobs(own)[0]))
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
        if flags.cfg or flags.help:
            continue
        given = names_of(parse(job))
        config = check(composed, given)
        if config_name == "train" and multirun:
            _check_processes(config["trainer"])
            if config["resume_with"] is not None:
                raise ConfigError(
                    "resume_with has no effect on a sweep. Continue its jobs one by one: "
                    "run_dir=<sweep_dir>/<number>."
                )
        elif config_name == "train":
            reject_untrained(config, given)
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
    own = [o for o in parse(flags.overrides) if not o.key_or_group.startswith("hydra")]
    config = compose_job("train", jobs(own)[0])
    listed = several(config)
    if not listed or config.harvest_only or not all(listed.values()):
        return list(arguments)
    lists = {o.input_line for o in own if o.key_or_group in listed}
    words = [
        word.replace("run_dir=", "sweep_dir=", 1) if word.startswith("run_dir=") else word
        for word in arguments
        if word not in lists
    ]
    words += [f"{name}={','.join(map(shown, values))}" for name, values in listed.items()]
    named = any(o.key_or_group == "launcher" for o in own)
    return ["-m", *words, *([] if named else ["launcher=ensemble"])]


def run_program(config_name: str, program: Any) -> None:
    """Run a Hydra main with errors that a user can read, and no traceback for theirs."""
    _require_utf8()
    folder = ""
    try:
        if config_name == "train":
            sys.argv[1:] = as_sweep(sys.argv[1:])
        configs = check_command_line(config_name, sys.argv[1:])
        if config_name == "train":
            resolve(configs, hand_down=True)
        if configs and configs[0].get("plan"):
            given = names_of(parse(_flags(sys.argv[1:]).overrides))
            _show_plan(configs, together="launcher=ensemble" in given)
            return
        if configs and config_name == "train":
            sys.argv[1:] = _in_own_folder(sys.argv[1:], configs[0])
            folder = configs[0]["run_dir" if len(configs) == 1 else "sweep_dir"]
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # or it would print tracebacks and leave
        program()
    except (SAEError, OSError, HydraException, OmegaConfBaseException) as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error.filename = folder or None  # Hydra wrote its files there, and names none
        fail(error)


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
    from sae.training.build import resolve_dtypes

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


def fail(error: Exception) -> NoReturn:
    """Print an error of the user's or of the disk and leave with status 1; raise any other."""
    told = explained(error)
    if told is None:
        raise error
    sys.stderr.write(f"{type(told).__name__}: {told}\n")
    raise SystemExit(1)


def note_failure(run_dir: Path, error: Exception) -> None:
    """Write a failed job of a sweep into its folder: the other jobs go on.

    The exit status of the program tells in the end (`conf.hooks`).
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    told = explained(error) or error
    text = str(told) if isinstance(told, SAEError) else "".join(traceback.format_exception(error))
    try:
        (run_dir / "error.txt").write_text(f"{type(told).__name__}: {text}\n", encoding="utf-8")
    except OSError:  # a disk that refuses even this: the sweep must not end as if it were well
        fail(told)
    log.error("Job %s failed: %s: %s", run_dir.name, type(told).__name__, text)


def explained(error: Exception) -> SAEError | None:
    """An error that a user can read; None for one that is a mistake of the program."""
    if isinstance(error, SAEError):
        return error
    if isinstance(error, OSError) and (told := refusal(error)):
        return ArtifactError(told)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return ConfigError(" ".join(str(error).split()))
    return None


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


def _in_own_folder(arguments: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The command line of train.py with a new folder, unless it names one."""
    flags = _flags(arguments)
    own = [o for o in parse(flags.overrides) if not o.key_or_group.startswith("hydra")]
    composed = _compose("train", tuple(jobs(own)[0]))
    return claimed(arguments, composed, config, _is_multirun(flags, composed))


def _show_plan(configs: Sequence[dict[str, Any]], together: bool) -> None:
    """Print what the jobs cost. Hydra does not even start: it would make the run folder."""
    from sae.planning import Machine, plan_runs, print_plan

    plan = plan_runs(configs, together=together)
    print_plan(plan, Machine.here(plan.device))


_PLUGINS = {"hydra/launcher/submitit": "slurm", "hydra/sweeper/optuna": "optuna"}
_HYDRAS_OWN = (
    "hydra_help", "shell_completion", "config_path", "config_name", "config_dir",
    "experimental_rerun", "info",
)  # fmt: skip


def _is_multirun(flags: Any, composed: DictConfig) -> bool:
    given = [o.value() for o in parse(flags.overrides) if o.key_or_group == "hydra.mode"]
    return flags.multirun or "MULTIRUN" in str(composed.hydra.mode or given)


def _check_folders(overrides: Sequence[Override], multirun: bool) -> None:
    wrong, right = ("run_dir", "sweep_dir") if multirun else ("sweep_dir", "run_dir")
    if wrong in names_of(overrides):
        which = "a sweep" if multirun else "one run; only a sweep (-m) has a sweep_dir"
        raise ConfigError(f"{wrong} has no effect on {which}. Give {right}=… instead.")


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


def _ends(override: Override) -> list[Override]:
    value = override.value()
    if not isinstance(value, IntervalSweep):
        return [override]
    return parse([f"{override.key_or_group}={value.start},{value.end}"])


def _check_processes(trainer: Mapping[str, Any]) -> None:
    """Lightning starts the other processes with this command line: with -m, each would sweep."""
    if trainer["devices"] * trainer["num_nodes"] > 1:
        raise ConfigError(
            f"trainer.devices={trainer['devices']} trainer.num_nodes={trainer['num_nodes']} means "
            "several processes, which a sweep (-m) cannot start for its jobs. Use "
            "trainer.devices=1 with launcher=joblib or launcher=submitit, a device for each job, "
            "or start single runs with trainer=ddp (docs/cluster.md)."
        )


@cache
def _compose(config_name: str, job: tuple[str, ...]) -> DictConfig:
    """The configuration with Hydra's own part. Whoever changes it must copy it."""
    for override in parse(job):
        known = options(override.key_or_group)
        if known and not override.is_delete() and override.value() is None:
            raise ConfigError(
                f"{override.input_line} is no choice. Choose one of {', '.join(known)}; "
                "without it, the default is used."
            )
    try:
        if GlobalHydra.instance().is_initialized():
            return compose(config_name, list(job), return_hydra_config=True)
        with initialize_config_dir(str(FOLDER), version_base="1.3"):
            return compose(config_name, list(job), return_hydra_config=True)
    except Exception as error:  # Hydra raises ValueError, TypeError and more for odd words
        raise _explained(config_name, job, error) from None


def _explained(config_name: str, job: Sequence[str], error: Exception) -> ConfigError:
    """The error with the allowed keys, or with Hydra's own list of options."""
    message = str(error)
    for override in parse(job):
        key = override.key_or_group
        if override.is_delete() and f"~{key}" in message:
            return ConfigError(f"~{key}: {key} is needed and cannot be removed.")
        known = _known_keys(config_name, key, _chosen(job, key))
        if known and key.rpartition(".")[2] not in known and override.key_or_group in message:
            close = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            where = key.rpartition(".")[0] or config_name
            return ConfigError(
                f"{key} is not known.{hint} {where} has: {', '.join(sorted(known))}."
            )
    for override in parse(job):
        options = sorted(path.stem for path in (FOLDER / override.key_or_group).glob("*.yaml"))
        wanted = override.value()
        for option in wanted if isinstance(wanted, list) else [wanted]:
            if options and isinstance(option, str) and option not in options:
                return ConfigError(
                    f"{override.key_or_group}={option} is not known. Available options in "
                    f"'{override.key_or_group}': {' '.join(options)}."
                )
    for plugin, extra in _PLUGINS.items():
        if f"Could not find '{plugin}" in message:
            return ConfigError(f'{plugin} is not installed: pip install "lightning-sae[{extra}]"')
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    noise = ("HYDRA_FULL_ERROR", "search path", "provider=")
    keep = [line for line in lines if not any(word in line for word in noise)]
    return ConfigError(" ".join(keep[:24]))


def _chosen(job: Sequence[str], key: str) -> tuple[str, ...]:
    """The override that chooses the group whose setting `key` is, as a tuple; () if none does."""
    group = key.partition(".")[0]
    return tuple(
        f"{group}={o.value()}"
        for o in parse(job)
        if o.key_or_group == group != key and o.value() in options(group)
    )


def _known_keys(config_name: str, key: str, chosen: tuple[str, ...]) -> list[str]:
    """Keys beside `key` in the configuration of these choices; [] where its parent is unknown."""
    node: Any = _compose(config_name, chosen)
    for part in key.split(".")[:-1]:
        node = node.get(part) if OmegaConf.is_dict(node) and part in node else None
    return [str(name) for name in node if name != "hydra"] if OmegaConf.is_dict(node) else []
