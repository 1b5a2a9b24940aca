"""The cache of activations: zarr v3 arrays that are checked on every read.

    <cache>/activations/<key>/
        metadata.json               spec, names, provenance
        tokens, document            [contexts ctx] int32
        activations/<site>.<layer>  [rows d_in]; with a metadata.json of its own: dtype, statistics
        partial/<site>.<layer>      a harvest that is under way or was killed

The arrays of a store are aligned row by row. Row -> (context, position) and chunk -> contexts are
arithmetic. A chunk is one file; the number of files and their size follow from the metadata, each
ends in a crc32c: zarr alone would return zeros for a missing file and flipped bytes as they are.
"""

import itertools
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
import zarr
from jaxtyping import Float, Int, Int32, Shaped
from torch import Tensor
from zarr.codecs import Crc32cCodec

from sae.activations.cache import (
    DAMAGE,
    Layout,
    StoreSpec,
    read_sealed,
    refuse_write,
    remedy,
    write_sealed,
)
from sae.activations.rows import Stats
from sae.errors import ConfigError, StoreError
from sae.intact import require_content, visible
from sae.provenance import provenance
from sae.types import Point

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
        """Start an empty array, over what may be there."""
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


class ActivationStore:
    """One split of activations on disk.

    Attributes:
        folder: `<cache>/activations/<key>`.
        spec: What the store was made from.
        metadata: Content of metadata.json: spec, names, number of contexts, provenance.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.metadata = read_sealed(folder / "metadata.json", remedy(folder))
        try:
            self.spec = StoreSpec(**self.metadata["spec"])
        except (TypeError, KeyError, ConfigError) as error:
            raise StoreError(
                f"{folder} was written by another version of this package. {remedy(folder)}"
            ) from error

    @classmethod
    def open(cls, where: StoreSpec | Path | str) -> "ActivationStore":
        """Open the store of a spec or in a folder.

        Raises:
            StoreError: If there is none, or it is damaged.
        """
        folder = where.folder if isinstance(where, StoreSpec) else Path(where)
        if not (folder / "metadata.json").exists():
            raise StoreError(
                f"No activations in {folder}. Harvest them first: sae.activations.harvest."
            )
        return cls(folder)

    @classmethod
    def create(
        cls,
        spec: StoreSpec,
        tokens: Int32[np.ndarray, "contexts ctx"],
        document: Int32[np.ndarray, "contexts ctx"],
        names: Mapping[str, str],
    ) -> "ActivationStore":
        """Write a store without activations, under the store's lock. It counts once complete.

        Args:
            spec: What the store is made from.
            tokens: The contexts.
            document: Document of each token.
            names: For people: the names of LM and corpus.
        """
        folder = spec.folder
        try:
            shutil.rmtree(folder, ignore_errors=True)
            zarr.create_group(folder, zarr_format=3)
            zarr.create_group(folder / "activations", zarr_format=3)
            for name, values in (("tokens", tokens), ("document", document)):
                array = _context_array(folder, name, *tokens.shape)
                array.create()
                for i in range(array.layout.num_chunks):
                    array.write(i, torch.from_numpy(values[slice(*array.layout.bounds(i))]))
            content = {"spec": asdict(spec), "names": dict(names), "num_contexts": len(tokens)}
            write_sealed(folder / "metadata.json", content | {"provenance": provenance()})
        except OSError as error:
            refuse_write(folder, error, 2 * tokens.nbytes)
        return cls(folder)

    @property
    def num_contexts(self) -> int:
        """Number of contexts."""
        return self.metadata["num_contexts"]

    @cached_property
    def tokens(self) -> Int32[np.ndarray, "contexts ctx"]:
        """The contexts."""
        return _context_array(self.folder, "tokens", self.num_contexts, self.spec.ctx).read_all()

    @cached_property
    def document(self) -> Int32[np.ndarray, "contexts ctx"]:
        """The document of each token, counted from 0 within the split."""
        return _context_array(self.folder, "document", self.num_contexts, self.spec.ctx).read_all()

    @property
    def num_documents(self) -> int:
        """Number of documents that the contexts touch."""
        return int(self.document.max()) + 1

    def contexts_of(self, i: int) -> slice:
        """The contexts whose rows are chunk `i`."""
        per_chunk = self.spec.contexts_per_chunk
        return slice(i * per_chunk, (i + 1) * per_chunk)

    def documents_of(self, i: int) -> Int[np.ndarray, " rows"]:
        """The document that each row of chunk `i` comes from."""
        first = self.spec.ctx - self.spec.rows_per_context
        return self.document[self.contexts_of(i), first:].reshape(-1)

    def tokens_of(self, i: int) -> Int[np.ndarray, " rows"]:
        """The token of each row of chunk `i`."""
        first = self.spec.ctx - self.spec.rows_per_context
        return self.tokens[self.contexts_of(i), first:].reshape(-1)

    def folder_of(self, point: Point) -> Path:
        """Where the array of a point is, with what is kept about it."""
        return self.folder / "activations" / str(point)

    def points(self) -> list[Point]:
        """The points that are there, complete, lowest layer first."""
        found = [Point.parse(path.parent.name) for path in self.folder.glob(
            "activations/*/metadata.json"
        )]  # fmt: skip
        return sorted(found, key=lambda point: (point.layer, point.site))

    def rows(self, point: Point) -> "StoredRows":
        """The activations of one point.

        Raises:
            StoreError: If they are not there, or damaged.
        """
        if point not in self.points():
            there = ", ".join(map(str, self.points())) or "nothing"
            raise StoreError(f"{self.folder} has no {point}; it holds {there}. Harvest it first.")
        return StoredRows(self, point)

    def layout(self, d_in: int) -> Layout:
        """Layout of an array of activations of width `d_in`."""
        return Layout(self.spec.num_rows, d_in, self.spec.chunk_rows, self.spec.dtype)

    def partial(self, point: Point, d_in: int) -> ChunkedArray:
        """The array that a harvest writes before it is published."""
        path = self.folder / "partial" / str(point)
        return ChunkedArray(path, self.layout(d_in), remedy(self.folder))

    def publish(self, point: Point, array: ChunkedArray, stats: Stats) -> None:
        """Make a complete partial array visible to readers, in one rename."""
        content = {"layout": asdict(array.layout), "stats": stats.to_json()}
        try:
            for leftover in array.path.glob("c/*/*.partial"):  # zarr's, of a killed process
                leftover.unlink()
            write_sealed(array.path / "metadata.json", content | {"provenance": provenance()})
            # What has the right name but no readable metadata.json was damaged: it makes room.
            shutil.rmtree(self.folder_of(point), ignore_errors=True)
            os.replace(array.path, self.folder_of(point))
        except OSError as error:
            refuse_write(array.path, error, None)

    def locate(
        self, rows: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Context and position within it of each row."""
        context, position = np.divmod(rows, self.spec.rows_per_context)
        return context, position + self.spec.ctx - self.spec.rows_per_context


class StoredRows:
    """The activations of one point of a store: `Rows`."""

    def __init__(self, store: ActivationStore, point: Point):
        self.store, self.point = store, point
        path, advice = store.folder_of(point), remedy(store.folder, point)
        metadata = read_sealed(path / "metadata.json", advice)
        self.stats = Stats.from_json(metadata["stats"])
        self._array = ChunkedArray(path, Layout(**metadata["layout"]), advice)
        self.num_rows = self._array.layout.num_rows
        self.d_in = self._array.layout.width
        self.num_chunks = self._array.layout.num_chunks

    def chunk_bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk `i` and the row after its last."""
        return self._array.layout.bounds(i)

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i` in the LM's own units and the stored dtype."""
        return self._array.read(i)

    def documents(self, i: int) -> Int[np.ndarray, " rows"]:
        """The document that each row of chunk `i` comes from."""
        return self.store.documents_of(i)

    def tokens(self, i: int) -> Int[np.ndarray, " rows"]:
        """The token of each row of chunk `i`."""
        return self.store.tokens_of(i)


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
        raise StoreError(f"{path} is no readable zarr array ({error}).") from error
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


def _context_array(folder: Path, name: str, num_contexts: int, ctx: int) -> ChunkedArray:
    chunk_rows = min(num_contexts, max(1, 2**20 // ctx))  # about 4 MB of int32
    return ChunkedArray(
        folder / name, Layout(num_contexts, ctx, chunk_rows, "int32"), remedy(folder)
    )
