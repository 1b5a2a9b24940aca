"""Zarr arrays on disk: ours, checked on every read, and those of users.

A chunk is one file; the number of files and their size follow from the layout, each ends in a
crc32c: zarr alone would return zeros for a missing file and flipped bytes as they are.
"""

import itertools
import math
import shutil
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import zarr
from jaxtyping import Shaped
from torch import Tensor
from zarr.codecs import Crc32cCodec

from sae.activations.cache import DAMAGE, Layout, refuse_write
from sae.errors import StoreError
from sae.intact import require_content, visible

_NO_CHUNKS = ("zarr.json", ".zarray", ".zattrs", ".zgroup")


class ChunkedArray:
    """A 2-D zarr array of a known layout. `remedy` ends every error about damage."""

    def __init__(self, path: Path, layout: Layout, remedy: str):
        self.path, self.layout, self._remedy = path, layout, remedy

    @cached_property
    def _array(self) -> zarr.Array:
        try:
            array = zarr.open_array(self.path, mode="r+", zarr_format=3)
            found = (*array.shape, array.chunks[0], str(array.dtype))
        except DAMAGE as error:
            self._damaged(self.path / "zarr.json", f"cannot be read ({error})", error)
        layout = self.layout
        expected = (layout.num_rows, layout.width, layout.chunk_rows, layout.numpy_dtype)
        if found != expected:
            self._damaged(self.path / "zarr.json", f"says {found} where {expected} is expected")
        return array

    def create(self) -> None:
        """Start an empty array; an older one is replaced."""
        layout = self.layout
        try:
            shutil.rmtree(self.path, ignore_errors=True)
            self._array = zarr.create_array(
                self.path,
                shape=(layout.num_rows, layout.width),
                chunks=(layout.chunk_rows, layout.width),
                dtype=layout.numpy_dtype,
                filters=None,
                compressors=[Crc32cCodec()],
                fill_value=0,
                attributes={"dtype": layout.dtype},
                # Otherwise a chunk of zeros is not written and looks like a missing file.
                config={"write_empty_chunks": True},
            )
        except OSError as error:
            refuse_write(self.path, error, layout.num_chunks * layout.chunk_bytes)

    def write(self, i: int, rows: Shaped[Tensor, "rows width"]) -> None:
        """Write chunk `i`; a reader sees the whole of it or nothing."""
        start, stop = self.layout.bounds(i)
        values = rows.view(torch.uint16) if self.layout.dtype == "bfloat16" else rows
        try:
            self._array[start:stop] = values.numpy()
        except OSError as error:
            remaining = (self.layout.num_chunks - i) * self.layout.chunk_bytes
            refuse_write(self._chunk_file(i), error, remaining)

    def read(self, i: int) -> Shaped[Tensor, "rows width"]:
        """Read chunk `i`.

        Raises:
            StoreError: If its file is missing, has another size or another checksum.
        """
        start, stop = self.layout.bounds(i)
        file = self._chunk_file(i)
        try:
            size = file.stat().st_size
        except OSError as error:
            self._damaged(file, "is missing", error)
        if size != self.layout.chunk_bytes:
            self._damaged(file, f"has {size:,} bytes instead of {self.layout.chunk_bytes:,}")
        try:
            values = torch.from_numpy(np.asarray(self._array[start:stop]))
        except StoreError:
            raise
        except DAMAGE as error:
            self._damaged(file, f"is damaged ({error})", error)
        return values.view(torch.bfloat16) if self.layout.dtype == "bfloat16" else values

    def read_all(self) -> np.ndarray:
        """All chunks as one array."""
        return torch.cat([self.read(i) for i in range(self.layout.num_chunks)]).numpy()

    def _chunk_file(self, i: int) -> Path:
        return self.path / "c" / str(i) / "0"

    def _damaged(self, file: Path, what: str, error: Exception | None = None) -> NoReturn:
        raise StoreError(f"{file} {what}. {self._remedy}") from error


def create_group(folder: Path) -> None:
    """Make a folder a zarr group, so that other programs find the arrays in it."""
    zarr.create_group(folder, zarr_format=3)


def open_foreign_zarr(path: Path) -> zarr.Array:
    """Open a user's own zarr array, whatever its codecs.

    Raises:
        StoreError: If it is none, or lacks chunks: zarr would read them as zeros.
    """
    for file in (path / "zarr.json", path / ".zarray", *_first_chunk(path)):
        if file.exists() or file.is_symlink():
            require_content(file, StoreError)
    try:
        array = zarr.open_array(path, mode="r")
        # A file holds a chunk, or a shard of them; zarr counts those of a shard beyond the array's
        # end, too. Chunks that a shard leaves out are zeros, as their writer meant them.
        per_file = 1 if array.shards is None else math.prod(
            shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)
        )  # fmt: skip
        files = math.prod(
            -(-size // part)
            for size, part in zip(array.shape, array.shards or array.chunks, strict=True)
        )
        missing = files - array.nchunks_initialized // per_file
    except DAMAGE as error:
        raise StoreError(
            f"{path} cannot be read as a zarr array ({error}). Copy it again, or write it again."
        ) from error
    if missing:
        what = "shards" if array.shards else "chunks"
        raise StoreError(
            f"{path} lacks {missing} of its {files} {what}. Write them again. If they hold zeros "
            "only (or what fill_value says), zarr left them out: write with "
            "config={'write_empty_chunks': True}."
        )
    return array


def _first_chunk(path: Path) -> list[Path]:
    """One of the files that hold numbers; of git-lfs pointers, all of them are."""
    found = (p for p in path.rglob("*") if p.name not in _NO_CHUNKS and not p.is_dir())
    return list(itertools.islice(visible(found, path), 1))
