"""Quotes around values that Hydra's grammar does not read as they are: `=`, `#`, brackets, é."""

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def quoted(key: str, value: str) -> str:
    r"""The override that sets a key to exactly this text.

    Example:
        >>> quoted("run_dir", "runs/epoch=3")
        'run_dir="runs/epoch=3"'
    """
    # In Hydra's strings a backslash is itself, but before a quote or at the end.
    escaped = re.sub(r'(\\*)(["]|$)', _escaped, value)
    return f'{key}="{escaped}"'


def typed(key: str, value: object) -> str:
    """An override as one types it in a shell, with no more quotes than it needs.

    Example:
        >>> print(typed("run_dir", "runs/1"), typed("run_dir", "runs/l1=1"))
        run_dir=runs/1 'run_dir="runs/l1=1"'
    """
    word = f"{key}={value}"
    try:
        (read,) = OverridesParser.create().parse_overrides([word])
        if read.value() == str(value):
            return shlex.quote(word)
    except HydraException:
        pass
    return shlex.quote(quoted(key, str(value)))


def how_to_quote(word: str) -> str | None:
    """The shell quoting for an override that cannot be read; None if quotes do not help.

    Entries of a list are quoted one by one.

    Example:
        >>> print(how_to_quote("run_dir=runs/epoch=3"))
        'run_dir="runs/epoch=3"'
        >>> print(how_to_quote("run=[a,epoch=3]"))
        'run=["a","epoch=3"]'
    """
    key, equals, value = word.partition("=")
    if not equals or not value or value.startswith('"') or _unfinished(value):
        return None
    override, wanted = quoted(key, value), value
    if value[0] == "[" and value[-1] == "]" and "[" not in value[1:]:
        wanted = [entry.strip() for entry in value[1:-1].split(",")]
        override = f"{key}=[{','.join(quoted('', entry)[1:] for entry in wanted)}]"
    try:
        (read,) = OverridesParser.create().parse_overrides([override])
    except HydraException:
        return None
    return shlex.quote(override) if read.value() == wanted else None


def _unfinished(value: str) -> bool:
    """True if a bracket or quote that the value starts with has no end: a slip, not a path."""
    ends = {"[": "]", "{": "}", "(": ")", "'": "'"}
    return value[0] in ends and ends[value[0]] not in value[1:]


def _escaped(found: re.Match[str]) -> str:
    backslashes, end = found.groups()
    return 2 * backslashes + (f"\\{end}" if end else "")
