"""Keep computed tensors or a JSON object in the cache."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from sae.checksums import load_tensors, read_sealed, save_tensors, seal
from sae.errors import ArtifactError
from sae.provenance import cache_dir, content_key, write_json
from sae.writing import replacing

if TYPE_CHECKING:  # programs that end early need not wait for it
    from torch import Tensor

log = logging.getLogger(__name__)
Made = tuple[dict[str, "Tensor"], Any]
"""Tensors by name, and facts about them: plain JSON values."""


def cached(name: str, identity: Mapping[str, object], make: Callable[[], Made]) -> Made:
    """Tensors from the cache; computed and stored first if missing or damaged.

    Processes that ask for the same tensors at the same time compute them once.

    Args:
        name: Folder in the cache, and the beginning of the file's name: `baselines/pca-`.
        identity: Everything that decides the tensors; JSON-able.
        make: Computes the tensors. A lock is held meanwhile, so it must not wait for another
            training of this process (`sae.sharing`), which may ask for the same tensors.
    """
    file = cache_dir() / f"{name}{content_key(identity)}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if file.exists():
            log.info("taken from the cache: %s", file)
        return cached_tensors(file, make)


def cached_tensors(file: Path, make: Callable[[], Made]) -> Made:
    """Content of a file of tensors; computed and written first if missing or damaged.

    Args:
        file: The file, which no other process writes meanwhile.
        make: Makes the tensors.
    """
    if file.exists():
        try:
            return load_tensors(file)
        except ArtifactError as error:
            log.warning("%s It is made again.", error)
    tensors, facts = make()
    with replacing(file) as temporary:
        save_tensors(temporary, tensors, facts)
    return tensors, facts


def cached_json(file: Path | None, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Object in a JSON file; computed and written first if missing or damaged.

    Args:
        file: The file; None: it is not kept.
        make: Makes the object, plain JSON values.
    """
    if file is None:
        return make()
    with suppress(ArtifactError):
        return read_sealed(file)
    content = make()
    try:
        write_json(file, seal(content))
    except OSError as error:  # a cache that others own may be read-only
        log.warning(
            "%s could not be cached and will be made again next time: %s.", file.name, error
        )
    return content
