"""Write files in one step, and explain errors of the disk."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DAY_SECONDS = 86_400.0


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Temporary path that becomes `path` in one step; it is removed if writing fails.

    Raises:
        OSError: If the disk refuses it; names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None or error.filename == str(temporary):  # a full disk names nothing
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the disk name the file that is written: a full one names nothing.

    Libraries in Rust, such as safetensors, raise errors of their own, with the number in the text.

    Raises:
        OSError: If the disk refuses it; names a file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def refusal(error: OSError, needed_bytes: int | None = None) -> str | None:
    """One line for a file that cannot be read or written; None if the error names none.

    Args:
        error: Error of the operating system.
        needed_bytes: Space that is needed, where it is known.
    """
    if error.filename is None:
        return None
    path = Path(os.fsdecode(error.filename))
    needed = "" if needed_bytes is None else f", {needed_bytes / 1e9:.2f} GB are needed"
    return (
        f"{str(path)[:300]}: {error.strerror or error}{free_space(path)}{needed}. Free space, "
        "check the permissions, or choose another folder."
    )


def free_space(path: Path) -> str:
    """Clause that says how much is free where a path is or would be."""
    with suppress(OSError, StopIteration):
        existing = next(place for place in (path, *path.parents) if os.path.lexists(place))
        return f"; {shutil.disk_usage(existing).free / 1e9:.2f} GB are free there"
    return ""


def sweep(folder: Path, older_than_seconds: float = 0.0) -> None:
    """Remove what processes that were killed left half written in a folder."""
    with suppress(OSError):
        for path in [*folder.glob(".*.tmp"), *folder.glob(".*.new")]:
            if time.time() - path.lstat().st_mtime < older_than_seconds:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
