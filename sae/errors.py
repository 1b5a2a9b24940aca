"""Errors, as a tree.

SAEError                    every error that a user can cause; the message says what was given,
│                           what is allowed and what to do
├── ConfigError             a value, a key or a combination of them
├── SourceError             an LM or a text that cannot be loaded (network, checksum, missing file)
├── SiteError               a layer, a site or an LM family that does not exist
├── StoreError              cached activations that are damaged, missing or of another kind
├── ArtifactError           a saved SAE or run folder that cannot be read
├── DegenerateInputError    numbers for which a metric is undefined
└── DivergedError           training went wrong: numbers that are not finite, an error that grows
"""

import difflib
import re
from collections.abc import Collection


class SAEError(ValueError):
    r"""Base of all errors that tell the user what to change, in one line.

    What a message repeats, a word of the command line or the name of a file, may hold line breaks
    or what a terminal obeys: the former become spaces, the latter are spelt out.

    Example:
        >>> str(SAEError("no file a\nb\x1b[2J"))
        'no file a b\\x1b[2J'
    """

    def __str__(self) -> str:
        """The line."""
        line = re.sub(r"[^\S ]+", " ", super().__str__())
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class ConfigError(SAEError):
    """A configuration value is misspelt, of the wrong type, out of range or without effect."""


class SourceError(SAEError):
    """A language model or a text cannot be loaded (network, checksum, missing file)."""


class SiteError(SAEError):
    """A site, a layer or an LM family is not known."""


class StoreError(SAEError):
    """Cached activations are damaged, missing or do not fit."""


class ArtifactError(SAEError):
    """A saved SAE or a run folder cannot be read."""


class DegenerateInputError(SAEError):
    """A metric is undefined for the numbers given, for example the FVU of equal rows."""


class DivergedError(SAEError):
    """Training went wrong: numbers are NaN or infinite, the error is huge, or nothing fires."""


def unknown(name: str, known: Collection[str], prefix: str = "", lead: str = "There are:") -> str:
    """The message for a name that is not known, with the closest one and all others.

    Example:
        >>> unknown("layr", ["layer", "site"])
        'layr is not known. Did you mean layer? There are: layer, site.'
    """
    close = difflib.get_close_matches(name, known, 1)
    meant = f" Did you mean {prefix}{close[0]}?" if close else ""
    return f"{prefix}{name} is not known.{meant} {lead} {', '.join(known)}."
