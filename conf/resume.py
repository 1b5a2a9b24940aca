"""Continue a run or a sweep that is already on disk: the saved configuration decides."""

import copy
import logging
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from conf.effects import check_training
from conf.options import keys_set_by, known_wheels
from conf.quoting import typed
from conf.schema import check_nodes, lacking_key
from conf.settings import SHORT
from sae.checksums import check_text, seal_text
from sae.errors import ArtifactError, ConfigError
from sae.reading import read_yaml
from sae.settings import shown
from sae.writing import replacing

log = logging.getLogger(__name__)

CHANGEABLE = (
    "epochs", "run_dir", "sweep_dir", "logger", "trainer.accelerator", "trainer.devices",
    "trainer.num_nodes", "trainer.precision", "harvest_only", "plan",
)  # fmt: skip
"""Settings that a continued run may set anew: its length, loggers and hardware."""


RESOLVED = ("lm.dtype", "trainer.precision", "trainer.kernels")
"""Settings of which `auto` is resolved when a run begins; to continue one, it is as recorded."""


def save_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write `config.yaml`, resolved, with its checksum in the first line."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with replacing(run_dir / "config.yaml") as temporary:
        text = yaml.safe_dump(dict(config), sort_keys=False)
        temporary.write_text(seal_text(text), "utf-8")


def saved_config(run_dir: Path) -> dict[str, Any] | None:
    """The configuration of the run in this folder, or None where there is none.

    Raises:
        ArtifactError: If the file is there but is damaged, or is not a whole configuration of this
            version.
    """
    path = run_dir / "config.yaml"
    if not os.path.lexists(path):
        return None
    check_text(path)
    config = read_yaml(path)
    if not isinstance(config, dict) or "sae" not in config:
        raise ArtifactError(f"{path} is not the configuration of a run. Choose another run_dir.")
    try:
        _as_it_was_meant(config)
        if key := lacking_key(config):
            raise ArtifactError(
                f"{path} lacks {key}: another version wrote it. Add {key} there with the value "
                "that the run was made with, or choose another run_dir."
            )
        return check_nodes(config)
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error}") from None


def _as_it_was_meant(config: dict[str, Any]) -> None:
    """Fill in what an older version did without a setting: all rows counted, on one node."""
    for name, meant in (("activations", {"max_norm": None}), ("trainer", {"num_nodes": 1})):
        if isinstance(node := config.get(name), dict):
            of_lm = {"special": "keep"} if node.get("kind") == "lm" else {}
            config[name] = {**meant, **of_lm, **node}


def continued(
    run_dir: Path, config: dict[str, Any], given: Sequence[str] | None = None
) -> dict[str, Any]:
    """The configuration to run with: the saved one, if `run_dir` holds a run.

    Args:
        run_dir: Folder of the run.
        config: The configuration composed from this command line.
        given: Keys that the command line sets (`conf.compose.names_of`): these keys must agree with
            the saved run, the others follow it. None: all must agree.

    Raises:
        ConfigError: If `config` contradicts the saved run where it may not.
        ArtifactError: If the saved configuration cannot be used, or names a wheel that neither
            conf/ nor the cache has: the folder may be somebody else's.
    """
    saved, changed = saved_config(run_dir), config.get("resume_with")
    if saved is None:
        if changed is not None:
            raise ConfigError(
                f"resume_with={changed} has no effect: {run_dir} holds no run. Give the run_dir of "
                "a run, or set these keys themselves."
            )
        return config
    nodes = [node for node in saved.values() if isinstance(node, dict)]
    readers = [name for name in SHORT if any(name in node for node in nodes)]
    if given is None:
        # short overrides first: a conflict is best shown by the name that people give
        unread = set(SHORT) - set(readers)
        keys = {key: key for key in [*readers, *saved, *config] if key not in unread}
    else:
        # a key in an option's file, for example of experiment=paper, is as good as given
        keys = {key: word for word in given for key in keys_set_by(word)} | {
            key: key for key in given if "=" not in key
        }
        shorts = {name: config[name] for name in SHORT}
        check_training(saved | shorts, given, readers)
    merged = copy.deepcopy(saved) | {name: config[name] for name in ("run_dir", "sweep_dir")}
    resumed = dict(saved.get("resume_with") or {})
    keys.pop("resume_with", None)
    for key, word in keys.items():
        for name, old, new in _leaves(key, _at(saved, key), _at(config, key)):
            if name in RESOLVED and new == "auto":
                continue
            if name in resumed:  # the command that began the run says what was then
                continue
            if any(f"{name}.".startswith(f"{free}.") for free in CHANGEABLE):
                _put(merged, name, new)
            elif old != new:
                raise ConfigError(
                    f"{run_dir} holds a run with {name}={shown(old)}, but {name}={shown(new)} was "
                    "given. Only its length (epochs), loggers and hardware (trainer.accelerator, "
                    "trainer.devices, trainer.num_nodes, trainer.precision) may change. "
                    f"Drop {word}, or choose another folder. Settings of the optimizer may change "
                    "by resume_with='{optimizer.lr: …}'."
                )
    _check_named(merged, config, run_dir)
    if changed is not None:
        new = _resumable(changed)
        merged["resume_with"] = resumed | new
        for name, value in new.items():
            _put(merged, name, value)
    if merged["epochs"] < saved["epochs"]:
        raise ConfigError(
            f"epochs={merged['epochs']} is shorter than the run in {run_dir}, which has "
            f"epochs={saved['epochs']}. A run can be continued for longer, not for less."
        )
    return merged


def tell_finished(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Log that this folder holds a finished run, and how to continue it.

    Raises:
        ConfigError: If settings of the optimiser are given, which nothing would read.
    """
    if config.get("resume_with") != (saved_config(run_dir) or {}).get("resume_with"):
        raise ConfigError(
            f"resume_with has no effect: {run_dir} holds a finished run. Also give more epochs."
        )
    fitted = config["sae"].get("kind") is not None
    more = "" if fitted else f" epochs=… above {config['epochs']} continues it."
    log.info("%s holds a finished run.%s", run_dir, more)


def how_to_go_on(run_dir: Path, config: Mapping[str, Any]) -> str:
    """The command that goes on from the last good checkpoint at a tenth of the learning rate."""
    from sae.training.optimizers import OptimizerSettings

    rate = min(config["optimizer"]["lr"] / 10, OptimizerSettings().lr)
    change = shlex.quote(f"resume_with={{optimizer.lr: {rate:g}}}")
    return f"From the last good checkpoint: python train.py {typed('run_dir', run_dir)} {change}"


def _resumable(changed: Any) -> dict[str, Any]:
    """The checked settings of `resume_with`.

    Raises:
        ConfigError: If it is not a mapping, names another key, or a value is out of range.
    """
    from sae.training.optimizers import OptimizerSettings

    words = changed if isinstance(changed, dict) else {}
    node = {str(key).removeprefix("optimizer."): value for key, value in words.items()}
    if not node or "name" in node or {f"optimizer.{key}" for key in node} != {*words}:
        raise ConfigError(
            f"resume_with={shown(changed)} cannot change in a run. Only settings of the optimizer, "
            "without its name, may: resume_with='{optimizer.lr: 1e-4}'."
        )
    checked = OptimizerSettings(**node)
    return {f"optimizer.{key}": getattr(checked, key) for key in node}


def _check_named(merged: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path) -> None:
    from sae.language.trust import check_asked, check_named

    file = str(run_dir / "config.yaml")
    for group in ("lm", "corpus", "activations"):
        node = merged.get(group)
        if isinstance(node, dict) and node != config.get(group):
            check_named(node, known_wheels(), file, group)
    if isinstance(evals := merged.get("eval"), dict):
        chosen = config.get("eval")
        check_asked(evals, chosen if isinstance(chosen, dict) else {}, file)


def _leaves(key: str, ours: Any, theirs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, ours, theirs) for every leaf of either node; None where one lacks it."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in dict.fromkeys([*ours, *theirs]):
            yield from _leaves(f"{key}.{name}", ours.get(name), theirs.get(name))
    else:
        yield key, ours, theirs


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        config = config[part]
    config[last] = value
