"""Folder of stores: their names, the lock of their writer, and errors about files."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int

from sae import checksums
from sae.activations.rows import ROWS_PER_CHUNK
from sae.errors import ArtifactError, ConfigError, StoreError
from sae.provenance import cache_dir, content_key
from sae.types import SPLITS, Point, Split
from sae.writing import free_space

log = logging.getLogger(__name__)

StoredDtype = Literal["float32", "float16", "bfloat16"]
# What zarr, its codecs and JSON raise for damaged files (MemoryError is none of them).
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OSError)
_CRC_BYTES = 4


@dataclass(frozen=True)
class StoreSpec:
    """Identity of a store: text, order and values follow from it, and its key is a hash of it.

    Attributes:
        lm: Identity of the LM (`LMSource.identity()`).
        corpus: Identity of the text (`Corpus.identity()`).
        split: `train`, `val` or `test`; each split is a store of its own.
        ctx: Tokens in a context.
        tokens: LM tokens harvested, cut to whole contexts.
        dtype: Dtype that activations are stored in.
        seed: Decides splits and the order of documents.
        val_fraction: Share of documents held out for validation.
        test_fraction: Share of documents held out for testing.
        keep_first: Keep position 0 of each context (an attention sink) in the rows.
    """

    lm: Mapping
    corpus: Mapping
    split: Split
    ctx: int
    tokens: int
    dtype: StoredDtype
    seed: int
    val_fraction: float
    test_fraction: float
    keep_first: bool

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ConfigError(f"split={self.split!r} is unknown. Choose from {', '.join(SPLITS)}.")
        if self.dtype not in get_args(StoredDtype):
            allowed = ", ".join(get_args(StoredDtype))
            raise ConfigError(f"dtype={self.dtype!r} cannot be stored. Choose from {allowed}.")
        if self.rows_per_context < 1:
            raise ConfigError(
                f"ctx={self.ctx} leaves no row: position 0 of a context is not kept. "
                "Use ctx=2 or more, or keep_first=true."
            )
        if self.tokens < self.ctx:
            raise ConfigError(
                f"{self.tokens} tokens ({self.split}) are less than one context of {self.ctx}. "
                "Ask for more tokens or a smaller ctx."
            )

    @property
    def rows_per_context(self) -> int:
        """Rows that each context gives."""
        return self.ctx if self.keep_first else self.ctx - 1

    @property
    def contexts_per_chunk(self) -> int:
        """Contexts in a chunk, the same for all arrays of the store."""
        return max(1, ROWS_PER_CHUNK // self.rows_per_context)

    @property
    def chunk_rows(self) -> int:
        """Rows in a chunk; the last one may have fewer."""
        return self.contexts_per_chunk * self.rows_per_context

    @property
    def num_rows(self) -> int:
        """Rows of the whole split."""
        return self.tokens // self.ctx * self.rows_per_context

    @property
    def key(self) -> str:
        """Name of the store in the cache."""
        return content_key(asdict(self))

    @property
    def folder(self) -> Path:
        """Folder of the store, there or not."""
        return stores_dir() / self.key


@dataclass(frozen=True)
class Layout:
    """Shape, dtype and chunks of an array: what its files must look like."""

    num_rows: int
    width: int
    chunk_rows: int
    dtype: str

    @property
    def num_chunks(self) -> int:
        """Number of chunk files."""
        return -(-self.num_rows // self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        """Size of every chunk file; zarr pads the last one."""
        itemsize = np.dtype(self.numpy_dtype).itemsize
        return self.chunk_rows * self.width * itemsize + _CRC_BYTES

    @property
    def numpy_dtype(self) -> str:
        """Dtype in zarr; NumPy has no bfloat16, so its bits are kept."""
        return "uint16" if self.dtype == "bfloat16" else self.dtype

    def bounds(self, i: int) -> tuple[int, int]:
        """First row of chunk `i` and the row after its last."""
        if not 0 <= i < self.num_chunks:
            raise IndexError(f"chunk {i} of {self.num_chunks}")
        return i * self.chunk_rows, min((i + 1) * self.chunk_rows, self.num_rows)


def stores_dir() -> Path:
    """The folder that holds all stores."""
    return cache_dir() / "activations"


@contextmanager
def store_lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the store's lock: no other process changes it. The lock ends with its process.

    Raises:
        StoreError: If the cache cannot be written, or the store is locked and `wait` is false.
    """
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise StoreError(
                    f"{folder.name} is being harvested by another process. "
                    "Wait for it or stop it first."
                ) from None
            # A warning, so that it is seen without any logging set up: this can take minutes.
            log.warning("Another process harvests %s; waiting for it.", folder.name)
            lock.acquire()
    except OSError as error:
        refuse_write(folder, error, None)
    try:
        yield
    finally:
        lock.release()


def locate(
    rows: Int[np.ndarray, " n"], ctx: int, rows_per_context: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Context and position within it of rows of a store; position 0 may have no row.

    Example:
        >>> locate(np.array([0, 3]), ctx=4, rows_per_context=3)
        (array([0, 1]), array([1, 1]))
    """
    context, position = np.divmod(rows, rows_per_context)
    return context, position + ctx - rows_per_context


def refuse_write(path: Path, error: OSError, bytes_needed: int | None) -> NoReturn:
    """Turn a failed write into an error that names the path and the space."""
    space = free_space(path)
    if bytes_needed is not None:
        space += f", {bytes_needed / 1e9:.2f} GB are still needed"
    raise StoreError(
        f"Cannot write {path} ({error.strerror or error}){space}. Free space, check the "
        "permissions, or set SAE_CACHE to a folder on another disk."
    ) from error


def remedy(folder: Path, point: Point | None = None) -> str:
    """Advice about a damaged store or array."""
    root = folder.parent.parent
    prefix = "" if root == cache_dir() else f"SAE_CACHE={root} "
    entry = folder.name if point is None else f"{folder.name}/{point}"
    return (
        f"Remove it with `{prefix}python -m sae.activations remove {entry} --yes` and run again: "
        "it is then harvested anew."
    )


def read_sealed(path: Path, advice: str) -> dict:
    """Read JSON and check its checksum; `advice` ends the error if it is missing or damaged."""
    try:
        return checksums.read_sealed(path)
    except ArtifactError as error:
        raise StoreError(f"{path} is damaged or missing ({error}). {advice}") from error
