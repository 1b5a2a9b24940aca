"""A file format: its name, and functions that recognise, read and write it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sae.dictionaries.sae import SAE


class Format(NamedTuple):
    """One way to keep an SAE in files.

    Attributes:
        word: Name for users (`format=`).
        looks_like: Tells by its files if a path is of this format.
        load: Read it. With `many`, which of several SAEs is a second argument.
        save: Write it into a folder that is there and empty; None where it is only read.
        many: True if one file can hold several SAEs.
    """

    word: str
    looks_like: Callable[[Path], bool]
    load: Callable[..., SAE]
    save: Callable[[Path, SAE], None] | None = None
    many: bool = False
