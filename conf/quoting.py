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

    Example:
        >>> print(how_to_quote("run_dir=runs/epoch=3"))
        'run_dir="runs/epoch=3"'
    """
    key, equals, value = word.partition("=")
    if not equals or not value or value[0] in "[{(\"'":  # a list, or quotes that do not end
        return None
    override = quoted(key, value)
    try:
        (read,) = OverridesParser.create().parse_overrides([override])
    except HydraException:
        return None
    return shlex.quote(override) if read.value() == value else None


def _escaped(found: re.Match[str]) -> str:
    backslashes, end = found.groups()
    return 2 * backslashes + (f"\\{end}" if end else "")
