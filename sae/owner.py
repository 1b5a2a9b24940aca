"""One process at a time writes into a folder; the lock dies with it."""

import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from sae.errors import ArtifactError
from sae.provenance import write_json
from sae.reading import read_object
from sae.writing import sweep

log = logging.getLogger(__name__)

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it does not exist.

    Raises:
        ArtifactError: If another process holds it, with that process' number and host.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ArtifactError(
            f"{folder} belongs to another process{_who(folder)}, which is writing there. Wait "
            "until it ends, or choose another folder."
        ) from None
    except NotImplementedError:
        log.warning(
            "The disk of %s does not support file locks: start no other process in that folder.",
            folder,
        )
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since_utc": now}
        for place in (folder, folder / "checkpoints"):
            sweep(place)
        write_json(folder / OWNER, owner)
        yield
    finally:
        with suppress(OSError):  # a disk that became read-only
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()
        if new and [path.name for path in folder.iterdir()] in ([], [LOCK]):
            shutil.rmtree(folder, ignore_errors=True)  # nothing was written


def new_folder(wanted: Path) -> Path:
    """Make a folder of this name, or with `-2`, `-3`, … after it where others have it.

    `mkdir` gives each name to one process only, so that runs of the same second get their own.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("count() has no end")


def _who(folder: Path) -> str:
    with suppress(ArtifactError, KeyError):
        owner = read_object(folder / OWNER)
        return f" (pid {owner['pid']} on {owner['host']}, since {owner['since_utc']})"
    return ""
