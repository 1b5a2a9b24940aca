"""Hashes of local files, which tell if a folder or a text has changed."""

import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from sae.progress import progress
from sae.provenance import cache_dir, content_key

# Reading 64 MB takes a fraction of a second; above, a hash is worth remembering.
_REMEMBER_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 22


def files_identity(files: Iterable[Path], folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path in `folder`, so that a moved folder stays the same."""
    return {str(path.relative_to(folder).as_posix()): file_sha256(path) for path in sorted(files)}


def file_sha256(path: Path, *, anew: bool = False) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    The hash of a large file is remembered in the cache under its path, size and time of change,
    unless it changed within the last two seconds: a clock may be too coarse to tell two writes.

    Args:
        path: The file.
        anew: Read the bytes whatever is remembered: a disk that loses some changes no time.
    """
    status = path.stat()
    if anew or status.st_size < _REMEMBER_BYTES:
        return _hash(path, status.st_size)
    stamp = {"path": str(path.resolve()), "bytes": status.st_size, "time": status.st_mtime_ns}
    memory = cache_dir() / "hashes" / content_key(stamp)
    if memory.exists():
        digest, _, check = memory.read_bytes().decode(errors="replace").partition(" ")
        if check == content_key({"sha256": digest}):
            return digest
    digest = _hash(path, status.st_size)
    if time.time() - status.st_mtime > 2.0:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_suffix(f".{time.monotonic_ns()}")
        temporary.write_text(f"{digest} {content_key({'sha256': digest})}")
        temporary.replace(memory)
    return digest


def _hash(path: Path, size: int) -> str:
    digest = sha256()
    if size < _REMEMBER_BYTES:
        digest.update(path.read_bytes())
        return digest.hexdigest()
    with path.open("rb") as file, progress(f"check {path.name}", size, unit="bytes") as advance:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()
