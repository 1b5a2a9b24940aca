"""`--help` and `--cfg job`: what conf/schema.json says of every part, without importing one."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from conf.options import FOLDER, options
from sae.settings import shown

FILE = FOLDER / "schema.json"
SEVERAL = ("callbacks", "eval")
"""Nodes that hold a node for each name."""
_READERS = ("activations.lm", "sae.tied", "sae.topk")
"""Parts whose defaults are shown for the short overrides."""


@cache
def _schema() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def keys_of(start: str) -> set[str]:
    """Keys of the parts whose names start so, such as `activations.lm` or `activations.`."""
    parts = [about for name, about in _schema()["$defs"].items() if name.startswith(start)]
    return {key for about in parts for key in about["properties"]}


def keys_in_words(program: str) -> str:
    """A line for each key of the top level that is not a node: its meaning and default."""
    whole = _schema() if program == "train" else _schema()["$defs"]["evaluate"]
    nodes = [key for key, about in _schema()["properties"].items() if "$ref" in str(about)]
    readers = [_schema()["$defs"][name]["properties"] for name in _READERS]
    lines = []
    for key, about in whole["properties"].items():
        if key in nodes:
            continue
        read = [
            one[key] for one in readers if key in one and {*about} <= {"description", "default"}
        ]
        default = next((one["default"] for one in (*read, about) if "default" in one), "")
        default = f" ({shown(default)})" if default != "" else ""
        lines.append(f"{key:<13} {about['description']}{default}")
    return "\n  ".join(lines)


def groups_in_words(*groups: str) -> str:
    """A line for each of these groups, or for all: its options."""
    folders = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())
    return "\n  ".join(
        f"{group:<13} {' '.join(listed)}"
        for group in groups or folders
        if (listed := options(group))
    )


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A composed configuration with the defaults of all settings that its nodes lack.

    Args:
        config: Resolved, without nulls that nobody gave. It need not be valid.
    """
    filled = dict(config)
    for group, node in config.items():
        if isinstance(node, Mapping) and group in SEVERAL:
            filled[group] = {name: _filled(f"{group}.{name}", one) for name, one in node.items()}
        elif isinstance(node, Mapping):
            name = node.get("architecture") if group == "sae" else node.get("kind")
            filled[group] = _filled(f"{group}.{name}" if name else group, node)
    return filled


def _filled(name: str, node: Any) -> Any:
    about = _schema()["$defs"].get(name, {}).get("properties", {})
    defaults = {key: one["default"] for key, one in about.items() if "default" in one}
    if not isinstance(node, Mapping):
        return node
    return {**node, **{key: value for key, value in defaults.items() if key not in node}}
