"""transformers without its own progress bars, warnings and advice."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from sae.errors import SourceError


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


def require_hub(what: str, instead: str) -> None:
    """Find out within seconds whether the hub can be reached; its own clients retry for longer.

    Args:
        what: Repository that is needed.
        instead: What works without the hub, for the error message.

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
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
