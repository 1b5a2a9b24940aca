"""Continue a run or a sweep that is already on disk: the saved configuration decides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sae.errors import ArtifactError, ConfigError

CHANGEABLE = (
    "epochs", "run_dir", "sweep_dir", "logger", "trainer.accelerator", "trainer.devices",
    "trainer.precision", "harvest_only", "experiment", "sweep", "launcher",
)  # fmt: skip
"""What a continued run may set anew: its length, loggers and hardware."""


def save_config(run_dir: Path, config: Mapping[str, Any]) -> None:
    """Write `config.yaml`, resolved."""
    run_dir.mkdir(parents=True, exist_ok=True)
    temporary = run_dir / ".config.yaml.tmp"
    temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    temporary.replace(run_dir / "config.yaml")


def saved_config(run_dir: Path) -> dict[str, Any] | None:
    """The configuration of the run in this folder, or None where there is none.

    Raises:
        ArtifactError: If the file is there but cannot be read.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        return None
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ArtifactError(f"{path} is damaged ({error}). Choose another run_dir.") from None
    if not isinstance(config, dict) or "sae" not in config:
        raise ArtifactError(f"{path} is not the configuration of a run. Choose another run_dir.")
    return config


def continued(run_dir: Path, config: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """The configuration to run with: the saved one, if `run_dir` holds a run.

    Args:
        run_dir: Folder of the run.
        config: The configuration composed from this command line.
        given: Keys and groups that the command line sets; all others follow the saved run.

    Raises:
        ConfigError: If the command line contradicts the saved run where it may not.
    """
    saved = saved_config(run_dir)
    if saved is None:
        return config
    merged = {**saved, "run_dir": config["run_dir"], "sweep_dir": config["sweep_dir"]}
    for key in given:
        ours, theirs = _at(saved, key), _at(config, key)
        if any(f"{key}.".startswith(f"{name}.") for name in CHANGEABLE):
            _put(merged, key, theirs)
        elif ours != theirs:
            name, old, new = _first_difference(key, ours, theirs)
            raise ConfigError(
                f"{run_dir} holds a run with {name}={old}, but {name}={new} was given. Only its "
                "length (epochs), loggers and hardware (trainer.accelerator, trainer.devices, "
                f"trainer.precision) may change. Drop {key}, or choose another run_dir."
            )
    if merged["epochs"] < saved["epochs"]:
        raise ConfigError(
            f"epochs={merged['epochs']} is shorter than the run in {run_dir}, which has "
            f"epochs={saved['epochs']}. A run can be continued for longer, not for less."
        )
    return merged


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        config[part] = dict(config[part])
        config = config[part]
    config[last] = value


def _first_difference(key: str, ours: Any, theirs: Any) -> tuple[str, Any, Any]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in [*ours, *theirs]:
            if ours.get(name) != theirs.get(name):
                return _first_difference(f"{key}.{name}", ours.get(name), theirs.get(name))
    return key, ours, theirs
