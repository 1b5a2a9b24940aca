"""The cache of activations: zarr v3 arrays that are checked on every read.

    <cache>/activations/<key>/
        metadata.json               spec, names, provenance
        tokens, document            [contexts ctx] int32
        activations/<site>.<layer>  [rows d_in]; with a metadata.json of its own: dtype, statistics
        partial/<site>.<layer>      a harvest that is under way or was killed

The arrays of a store are aligned row by row. Row -> (context, position) and chunk -> contexts are
arithmetic.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from sae.activations.cache import (
    Layout,
    StoreSpec,
    locate,
    read_sealed,
    refuse_write,
    remedy,
)
from sae.activations.chunks import ChunkedArray, create_group
from sae.activations.stats import Stats
from sae.checksums import seal
from sae.errors import ConfigError, StoreError
from sae.provenance import provenance, write_json
from sae.types import Point


class ActivationStore:
    """One split of activations on disk.

    Attributes:
        folder: `<cache>/activations/<key>`.
        spec: Specification that the store was made from.
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
            spec: Specification that the store is made from.
            tokens: The contexts.
            document: Document of each token.
            names: Names of LM and corpus, to show to people.
        """
        folder = spec.folder
        try:
            shutil.rmtree(folder, ignore_errors=True)
            create_group(folder)
            create_group(folder / "activations")
            for name, values in (("tokens", tokens), ("document", document)):
                array = _context_array(folder, name, *tokens.shape)
                array.create()
                for i in range(array.layout.num_chunks):
                    array.write(i, torch.from_numpy(values[slice(*array.layout.bounds(i))]))
            content = {"spec": asdict(spec), "names": dict(names), "num_contexts": len(tokens)}
            write_json(folder / "metadata.json", seal(content | {"provenance": provenance()}))
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
        """Folder of the array of a point, with what is kept about it."""
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
            write_json(array.path / "metadata.json", seal(content | {"provenance": provenance()}))
            # What has the right name but no readable metadata.json was damaged: it makes room.
            shutil.rmtree(self.folder_of(point), ignore_errors=True)
            os.replace(array.path, self.folder_of(point))
        except OSError as error:
            refuse_write(array.path, error, None)

    def locate(
        self, rows: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Context and position within it of each row."""
        return locate(rows, self.spec.ctx, self.spec.rows_per_context)


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


def _context_array(folder: Path, name: str, num_contexts: int, ctx: int) -> ChunkedArray:
    chunk_rows = min(num_contexts, max(1, 2**20 // ctx))  # about 4 MB of int32
    return ChunkedArray(
        folder / name, Layout(num_contexts, ctx, chunk_rows, "int32"), remedy(folder)
    )
