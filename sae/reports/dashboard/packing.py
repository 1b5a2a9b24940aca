"""Numbers as text in a script: a file:// page may load scripts, and nothing else."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from sae.writing import replacing

_SMALLEST = ((0xFF, "B", "<u1"), (0xFFFF, "H", "<u2"), (0xFFFF_FFFF, "I", "<u4"))
_VALUE_STEPS = 65_535


def integers(numbers: Any) -> str:
    """Non-negative integers in the smallest type that holds them: a letter, then base64.

    Args:
        numbers: An array or a sequence; its shape is not kept.

    Returns:
        `B` (uint8), `H` (uint16) or `I` (uint32), all little-endian; empty for no numbers.

    Raises:
        OverflowError: If a number is negative or above 2^32 - 1.

    Example:
        >>> integers([1, 2, 255]), integers([256]), integers([])
        ('BAQL/', 'HAAE=', '')
    """
    array = np.asarray(numbers).ravel()
    if not array.size:
        return ""
    largest = int(array.max())
    if int(array.min()) < 0 or largest > _SMALLEST[-1][0]:
        raise OverflowError(f"{array.min()} to {largest} does not fit into 32 bits without a sign.")
    letter, kind = next(entry[1:] for entry in _SMALLEST if largest <= entry[0])
    return letter + _base64(array.astype(kind))


def floats(numbers: Any) -> str:
    """Numbers as little-endian float32: `f`, then base64; empty for no numbers.

    Example:
        >>> floats([1.0]), floats([])
        ('fAACAPw==', '')
    """
    array = np.asarray(numbers, np.float64).ravel()
    return "f" + _base64(array.astype("<f4")) if array.size else ""


def shares(numbers: Any, largest: float) -> str:
    """Numbers on [0, largest] in steps of a 65,535th of `largest`, as `integers`.

    Positive values stay positive.

    Example:
        >>> shares([0.0, 1e-9, 2.0], 2.0) == integers([0, 1, 65_535])
        True
    """
    array = np.asarray(numbers, np.float64).ravel()
    steps = np.rint(array / (largest or 1.0) * _VALUE_STEPS)
    return integers(np.clip(steps, array > 0, _VALUE_STEPS).astype(np.uint32))


def bits(flags: Any) -> str:
    """Booleans, eight a byte, the first one in the lowest bit, as `integers`."""
    return integers(np.packbits(np.asarray(flags, bool).ravel(), bitorder="little"))


def piece(token: bytes) -> str | list[int]:
    r"""A token as a string; as a list of bytes where it is not UTF-8 by itself.

    Example:
        >>> piece("é".encode()), piece(b"\xc3")
        ('é', [195])
    """
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)


def write_script(folder: Path, name: str, content: Any) -> None:
    """Write `content` as a script that hands it to the page under `name`.

    No `<` and nothing outside ASCII is left in it, so no text ends the script or a line of it.

    Raises:
        OSError: If the disk refuses the file.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    with replacing(folder / f"{name}.js") as temporary:
        temporary.write_text(f'dashboard.receive("{name}",{text});\n', encoding="ascii")


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
