"""Files that are not what their names say: hidden copies, git-lfs pointers, dangling links."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from sae.errors import SAEError

_FOLDERS = ("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found")
_POINTER = b"version https://git-lfs.github.com/spec/"


def is_hidden(name: str) -> bool:
    """True for names of files and folders that programs put there for themselves.

    Hidden files (`.DS_Store`, `._x`, `.x.swp`, `.ipynb_checkpoints`), editors' copies and locks
    (`x~`, `#x#`, `~$x`), and folders that systems and archivers add.

    Example:
        >>> [name for name in (".git", "._a.txt", "a.txt~", "#a#", "~$a.txt", "a.txt") if
        ...  not is_hidden(name)]
        ['a.txt']
    """
    saved_by_emacs = len(name) > 1 and name[0] == name[-1] == "#"
    hidden = name.startswith((".", "~$")) or name.endswith("~") or saved_by_emacs
    return hidden or name in _FOLDERS


def visible(paths: Iterable[Path], folder: Path) -> Iterator[Path]:
    """The paths that are not hidden and lie in no hidden folder below `folder`."""
    return (
        path
        for path in paths
        if not any(is_hidden(part) for part in path.relative_to(folder).parts)
    )


def follow_umask(file: Path) -> None:
    """Set a file's mode as the umask allows: safetensors writes 0600 regardless of it."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def require_content(file: Path, error: type[SAEError]) -> None:
    """Raise an error if a file name does not lead to the content of a file.

    Args:
        file: A file that is about to be read.
        error: Class of the error to raise.

    Raises:
        SAEError: An error of the class `error`, if the file is a dangling link, a loop of links, a
            folder, a pipe, cannot be opened, or is a git-lfs pointer instead of the file that
            git-lfs was to fetch.
    """
    if file.is_symlink() and not file.exists():
        raise error(f"{file} is a link to {file.readlink()}, which is not there. Repair the link.")
    if file.is_dir():
        raise error(f"{file} is a folder, not a file. Rename it, or give the file that is meant.")
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for its writer
            raise error(f"{file} is not a regular file. Remove it, or give the file that is meant.")
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as reason:
        raise error(f"{file} cannot be read ({reason.strerror}).") from None
    if start.startswith(_POINTER):
        size = re.search(rb"^size (\d+)", start, re.MULTILINE)
        bytes_ = f" of {int(size[1]):,} bytes" if size else ""
        raise error(
            f"{file} is a git-lfs pointer to a file{bytes_} that was not fetched. Run `git lfs "
            "pull` in its repository, or download the file itself."
        )
