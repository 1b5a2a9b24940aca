"""transformers without its own progress bars, warnings and advice."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from sae.errors import ConfigError, SourceError


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Silence transformers inside the block; what was set before comes back after it.

    Args:
        bars: Keep its progress bars: the hub's downloads show there.
    """
    # Imported here, as everywhere in this room: a cached run does without these seconds.
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def check_repo(field: str, repo: str, owned: bool = False) -> None:
    """Make sure that this can only be a repository of the hub, and no path or built-in reader.

    Args:
        field: Name of the setting.
        repo: `owner/name`.
        owned: True if the owner must be there. Old LMs do without (`gpt2`); to `datasets` a word
            alone may also name a reader for the files of the working folder.

    Raises:
        ConfigError: If it is none.
    """
    part = r"\w[\w.-]{0,95}"
    owner = f"{part}/" if owned else f"({part}/)?"
    if not re.fullmatch(owner + part, repo, re.ASCII):
        raise ConfigError(
            f"{field}={repo!r} is not the name of a repository of the hub. Write owner/name."
        )


def require_hub(what: str, instead: str) -> None:
    """Find out within seconds whether the hub can be reached; its own clients retry for longer.

    Args:
        what: Repository that is needed.
        instead: Way that works without the hub, for the error message.

    Raises:
        SourceError: If there is no answer.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=5.0)
    except Exception as error:  # the HTTP library, and so its errors, differ between versions
        reason = first_line(error)
        raise SourceError(
            f"{what} is on the Hugging Face hub, which cannot be reached ({reason}). {instead}"
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, with the next where it only announces that."""
    first, *more = (str(error).strip() or type(error).__name__).splitlines()
    line = f"{first} {more[0].strip()}" if more and first.endswith(":") else first
    return line.rstrip(".")
