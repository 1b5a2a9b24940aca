"""Errors of the user's or of the disk: one line on standard error, and no traceback."""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from sae.errors import ArtifactError, ConfigError, SAEError
from sae.writing import refusal

log = logging.getLogger(__name__)

_CONFIGURATION = ("hydra", "omegaconf")
"""Libraries whose errors are about what the user wrote."""


def explained(error: Exception) -> SAEError | None:
    """An error that a user can read; None for one that is a mistake of the program."""
    if isinstance(error, SAEError):
        return error
    if isinstance(error, OSError) and (told := refusal(error)):
        return ArtifactError(told)
    if type(error).__module__.partition(".")[0] in _CONFIGURATION:
        return ConfigError(" ".join(str(error).split()))
    return None


def fail(error: Exception) -> NoReturn:
    """Print an error of the user's or of the disk and leave with status 1; raise any other.

    A reader that has gone (`--help | head`) is not an error worth a word.
    """
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest goes nowhere
        raise SystemExit(1)
    told = explained(error)
    if told is None:
        raise error
    sys.stderr.write(f"{type(told).__name__}: {told}\n")
    raise SystemExit(1)


def note_failure(run_dir: Path, error: Exception) -> None:
    """Write a failed job of a sweep into its folder: the other jobs go on.

    The exit status of the program tells in the end (`failed_jobs`).
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    told = explained(error) or error
    text = str(told) if isinstance(told, SAEError) else "".join(traceback.format_exception(error))
    try:
        (run_dir / "error.txt").write_text(f"{type(told).__name__}: {text}\n", encoding="utf-8")
    except OSError:  # a disk that refuses even this: the sweep must not end as if it were well
        fail(told)
    log.error("Job %s failed: %s: %s", run_dir.name, type(told).__name__, text)


def failed_jobs(sweep_dir: Path) -> int:
    """Number of jobs of a sweep that failed; each is logged with the first line of its error."""
    files = sorted(sweep_dir.glob("*/error.txt"), key=lambda file: file.parent.name)
    for file in files:
        first = (file.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[0]
        log.error("Job %s failed: %s", file.parent.name, first)
    return len(files)
