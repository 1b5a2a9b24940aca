"""Every firing of every latent on a text, on disk: the first pass of records.

    <folder>/part-<n>.safetensors
        start [latents + 1]   where each latent's firings begin
        row, value [firings]  by latent, then by row; rows count from the first one of the part
        counted [rows]        which rows of the part count

Parts hold rows of the store that follow each other, so that a killed pass goes on after the last
whole part.
"""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from scipy import sparse
from torch import Tensor

from sae import functional
from sae.activations.counted_rows import CountedRows, all_rows
from sae.activations.rows import Rows
from sae.checksums import load_tensors, save_tensors
from sae.dictionaries.sae import SAE, SIGNED
from sae.errors import ArtifactError, StoreError
from sae.memory import return_freed_memory
from sae.progress import progress
from sae.writing import free_space, replacing

log = logging.getLogger(__name__)
_PART_FIRINGS = 4_000_000  # 32 MB on disk, about 300 MB while they are put in order
_GROUP_FIRINGS = 8_000_000


Lists = tuple[np.ndarray, np.ndarray]
"""Start of each list, and all lists concatenated."""


class Firings(NamedTuple):
    """The firings of one latent.

    Args:
        row: Rows of the store, ascending.
        value: Its activations there, in the LM's units; their size, where codes have signs.
    """

    row: Int[np.ndarray, " firings"]
    value: Float[np.ndarray, " firings"]


class _Part:
    """One file."""

    def __init__(self, file: Path):
        self.file = file
        tensors, _ = load_tensors(file)
        self.start = tensors["start"].numpy()
        self.counted = tensors["counted"].numpy()

    def read(self, name: str, bounds: slice = slice(None)) -> np.ndarray:  # noqa: B008
        with safe_open(self.file, framework="np") as content:
            part = content.get_slice(name)
            if not range(*bounds.indices(part.get_shape()[0])):  # nothing at the end is refused
                return content.get_tensor(name)[:0]
            return part[bounds]


class FiringStore:
    """The firings of all latents of an SAE on some rows.

    Args:
        parts: Parts in the order of their rows.
        num_latents: Latents; with signed codes the positive sides, then the negative ones.
    """

    def __init__(self, parts: list[_Part], num_latents: int):
        self.num_latents, self._parts = num_latents, parts
        sizes = [len(part.counted) for part in parts]
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        self.counted: Bool[np.ndarray, " rows"] = np.concatenate([p.counted for p in parts])
        """Mask of the rows that count."""
        self.counts: Int[np.ndarray, " latents"] = np.sum(
            [np.diff(part.start) for part in parts], axis=0
        )
        """Firings of each latent."""

    def __len__(self) -> int:
        """Number of parts."""
        return len(self._parts)

    def groups(self) -> list[range]:
        """All latents, in groups whose firings fit into memory together."""
        found, first, held = [], 0, 0
        for latent, count in enumerate(self.counts.tolist()):
            if held and held + count > _GROUP_FIRINGS:
                found.append(range(first, latent))
                first, held = latent, 0
            held += count
        return [*found, range(first, self.num_latents)]

    def read(self, latents: range) -> list[Firings]:
        """The firings of latents that follow each other."""
        pieces: list[list[Firings]] = [[] for _ in latents]
        for part, first in zip(self._parts, self._first[:-1], strict=True):
            bounds = slice(int(part.start[latents.start]), int(part.start[latents.stop]))
            row, value = part.read("row", bounds), part.read("value", bounds)
            for i, latent in enumerate(latents):
                own = slice(*(part.start[latent : latent + 2] - bounds.start))
                pieces[i].append(Firings(row[own] + first, value[own]))
        return [Firings(*map(np.concatenate, zip(*one, strict=True))) for one in pieces]

    def both_ways(self) -> Iterator[tuple[Lists, Lists]]:
        """The rows of each latent and the latents of each row, part by part."""
        for part in self._parts:
            row = part.read("row")
            shape = (len(part.counted), self.num_latents)
            ones = np.ones(len(row), np.int8)
            by_row = sparse.csc_matrix((ones, row, part.start), shape).tocsr()
            yield (part.start, row), (by_row.indptr, by_row.indices)


def collect(folder: Path, sae: SAE, rows: Rows, num_rows: int, batch_rows: int) -> FiringStore:
    """Open the parts, written first where they are missing or damaged.

    Args:
        folder: Folder for the parts; it holds only this SAE, these rows and this number of them.
        sae: The SAE, on the device to use.
        rows: A split.
        num_rows: Number of rows of the store to read, whether they count or not.
        batch_rows: Vectors encoded at once.

    Raises:
        StoreError: If the disk has no room.
    """
    num_latents = _num_latents(sae)
    parts = _parts(folder)
    first = sum(len(part.counted) for part in parts)
    if first == num_rows:
        return FiringStore(parts, num_latents)
    folder.mkdir(parents=True, exist_ok=True)
    with progress("read latents", num_rows, "vectors", done=first) as advance:
        for block in _blocks(sae, rows, first, num_rows, batch_rows):
            num_firings = len(block.latent)
            _check_room(folder, 8 * num_firings * (num_rows - first) // len(block.counted))
            file = _file(folder, len(parts))
            with replacing(file) as temporary:
                save_tensors(temporary, block.by_latent(num_latents))
            parts.append(_Part(file))
            return_freed_memory()
            first += len(block.counted)
            advance(len(block.counted))
    return FiringStore(parts, num_latents)


def firings_on(
    sae: SAE, x: Float[Tensor, "rows d_in"], counted: Bool[Tensor, " rows"], batch_rows: int
) -> list[Firings]:
    """The firings of each latent on rows in memory; nothing is written.

    Args:
        sae: The SAE, on the device to use.
        x: The rows, on the CPU.
        counted: Mask of the rows that count; others fire nothing.
        batch_rows: Vectors encoded at once.

    Returns:
        By latent; with signed codes the positive sides, then the negative ones.
    """
    num_latents = _num_latents(sae)
    found = _fired(sae, x, counted, batch_rows).by_latent(num_latents)
    ends = found["start"][1:-1].numpy()
    rows, values = (np.split(found[name].numpy(), ends) for name in ("row", "value"))
    return [Firings(*one) for one in zip(rows, values, strict=True)]


def open_firings(folder: Path, num_latents: int, num_rows: int) -> FiringStore:
    """The parts that `collect` wrote.

    Raises:
        ArtifactError: If some are missing or damaged.
    """
    parts = _parts(folder)
    if sum(len(part.counted) for part in parts) != num_rows:
        raise ArtifactError(f"Firings in {folder} are missing. {remedy(folder)}")
    return FiringStore(parts, num_latents)


def remedy(folder: Path) -> str:
    """Advice about damaged records, for the end of an error."""
    return f"Make the records again, which keeps what is whole, or remove {folder}."


def _num_latents(sae: SAE) -> int:
    return sae.d_sae * (2 if sae.config.activation in SIGNED else 1)


def _parts(folder: Path) -> list[_Part]:
    """The parts up to the first one that is missing or damaged."""
    found: list[_Part] = []
    while (file := _file(folder, len(found))).exists():
        try:
            found.append(_Part(file))
        except ArtifactError as error:
            log.warning("%s", error)
            break
    return found


class _Block(NamedTuple):
    """Firings in the order of rows: of each row how many, and their latents and values."""

    counts: np.ndarray
    latent: np.ndarray
    value: np.ndarray
    counted: np.ndarray

    def by_latent(self, num_latents: int) -> dict[str, Tensor]:
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        shape = (len(self.counted), num_latents)
        sorted_ = sparse.csr_matrix((self.value, self.latent, ends), shape).tocsc()
        return {
            "start": torch.from_numpy(sorted_.indptr.astype(np.int64)),
            "row": torch.from_numpy(sorted_.indices.astype(np.int32)),
            "value": torch.from_numpy(sorted_.data),
            "counted": torch.from_numpy(self.counted),
        }


def _blocks(sae: SAE, rows: Rows, first: int, num_rows: int, batch_rows: int) -> Iterator[_Block]:
    """Whole chunks, until they hold the firings of a part."""
    held: list[_Block] = []
    everything = all_rows(rows)
    for chunk in range(everything.num_chunks):
        start, stop = everything.chunk_bounds(chunk)
        if stop <= first:
            continue
        if start >= num_rows:
            break
        held.append(_encoded(sae, rows, chunk, min(stop, num_rows) - start, batch_rows))
        if sum(len(block.latent) for block in held) >= _PART_FIRINGS:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(blocks: list[_Block]) -> _Block:
    return _Block(*map(np.concatenate, zip(*blocks, strict=True)))


def _encoded(sae: SAE, rows: Rows, chunk: int, num_rows: int, batch_rows: int) -> _Block:
    """The first rows of a chunk; those that do not count fire nothing."""
    stored = all_rows(rows).read(chunk)
    counted = torch.ones(len(stored), dtype=torch.bool)
    if isinstance(rows, CountedRows):
        counted = rows.mask(chunk, stored)
    return _fired(sae, stored[:num_rows], counted[:num_rows], batch_rows)


@torch.no_grad()
def _fired(sae: SAE, stored: Tensor, counted: Tensor, batch_rows: int) -> _Block:
    counts, latents, values = [], [], []
    for some, kept in zip(stored.split(batch_rows), counted.split(batch_rows), strict=True):
        x, _ = functional.input_and_target(some.to(sae.device), sae.d_in)
        f = sae.encode(x).float()
        f[~kept.to(sae.device)] = 0
        f = sides(sae, f)
        row, latent = f.nonzero(as_tuple=True)
        counts.append(torch.bincount(row, minlength=len(f)).cpu().numpy())
        latents.append(latent.to(torch.int32).cpu().numpy())
        values.append(f[row, latent].cpu().numpy())
    return _Block(
        np.concatenate(counts), np.concatenate(latents), np.concatenate(values), counted.numpy()
    )  # fmt: skip


def sides(sae: SAE, f: Float[Tensor, "rows d_sae"]) -> Float[Tensor, "rows latents"]:
    """Codes without signs: of signed ones (PCA, ICA) the positive sides, then the negative ones."""
    return torch.cat([f.relu(), (-f).relu()], dim=1) if sae.config.activation in SIGNED else f


def _check_room(folder: Path, needed_bytes: int) -> None:
    if needed_bytes > shutil.disk_usage(folder).free:
        raise StoreError(
            f"The firings need {needed_bytes / 1e9:.2f} GB in {folder}{free_space(folder)}. Read "
            "fewer tokens (num_tokens), free space, or set SAE_CACHE to a folder on another disk."
        )


def _file(folder: Path, i: int) -> Path:
    return folder / f"part-{i:05d}.safetensors"
