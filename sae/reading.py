"""Small files that a user, a crash or somebody else may have damaged: JSON, YAML and text.

All of them are read here, so that every damage is one error that names the file: a folder, a pipe
(which would be waited for), a loop of links, bytes that are not UTF-8, nesting that no parser can
follow, numbers of thousands of digits.
"""

import csv
import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import yaml

from sae.errors import ArtifactError, SAEError
from sae.intact import require_content

_SHOWN = 200
FIRST: tuple[str, ...] = ("step", "tokens")
"""First columns of a table of metrics."""


def read_bytes(file: Path) -> bytes:
    """The bytes of a file.

    Raises:
        ArtifactError: If there is no such file or it cannot be read.
    """
    try:
        if not os.path.lexists(file):
            raise ArtifactError(f"{file} is missing.")
        require_content(file, ArtifactError)
        return file.read_bytes()
    except ArtifactError:
        raise
    except (OSError, ValueError) as reason:  # ValueError: a null byte in the name
        raise ArtifactError(f"{file} cannot be read ({_reason(reason)}).") from None


def read_text(file: Path) -> str:
    """A text in UTF-8.

    Raises:
        ArtifactError: If it cannot be read or is not UTF-8.
    """
    try:
        return read_bytes(file).decode("utf-8-sig")  # Windows writes a byte order mark
    except UnicodeDecodeError as reason:
        raise ArtifactError(f"{file} is damaged (not UTF-8: {reason.reason}).") from None


def read_table(file: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Columns of a `metrics.csv`, and its rows by step without their empty cells.

    A last line that a kill cut off is dropped.

    Raises:
        ArtifactError: If it cannot be read, or is no such table.
    """
    text = read_text(file)
    complete = text[: text.rfind("\n") + 1]
    if not complete:
        return list(FIRST), {}
    try:
        header, *lines = csv.reader(io.StringIO(complete))
    except csv.Error as error:  # a null byte, a cell without end
        raise ArtifactError(f"{file} is damaged ({error}). Restore or remove it.") from None
    if tuple(header[: len(FIRST)]) != FIRST:
        raise ArtifactError(
            f"{file} is not a table of metrics: its first columns are {header[:2]}, not "
            f"{list(FIRST)}. Move it away, or choose another folder."
        )
    rows = {}
    for cells in lines:
        if len(cells) == len(header) and cells[0].isdigit():
            rows[int(cells[0])] = {n: c for n, c in zip(header, cells, strict=True) if c}
    return header, rows


def read_json(file: Path) -> Any:
    """The value in a JSON file.

    Raises:
        ArtifactError: If it cannot be read or is not JSON.
    """
    return parse_json(read_text(file), str(file))


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ArtifactError: If it cannot be read or holds anything else.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ArtifactError(f"{file} holds no JSON object. Is it the file of another program?")
    return content


def parse_json(text: str, where: str, error: type[SAEError] = ArtifactError) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        where: Place of the text, for the error.
        error: Class of the error to raise.

    Raises:
        SAEError: An error of the class `error`, if the text is not JSON, is too deep, or has too
            long a number.

    Example:
        >>> parse_json('{"a": [1]}', "here")
        {'a': [1]}
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        raise error(f"{where} is damaged (not JSON: {_reason(reason)}).") from None


def read_yaml(file: Path) -> Any:
    """The value in a YAML file: plain values; tags build nothing and `${…}` is text.

    Raises:
        ArtifactError: If it cannot be read or is not YAML.
    """
    text = read_text(file)
    try:
        return yaml.safe_load(text)
    except Exception as reason:  # its constructors raise what they like, AttributeError among it
        raise ArtifactError(f"{file} is damaged (not YAML: {_reason(reason)}).") from None


def _reason(error: Exception) -> str:
    """One line of an exception."""
    if isinstance(error, OSError):
        return error.strerror or os.strerror(error.errno or errno.EIO)
    if isinstance(error, RecursionError):
        return "nested too deep"
    return " ".join(str(error).split())[:_SHOWN] or type(error).__name__
