"""Text x LM -> store: run the LM over the contexts once and store activations at some points."""

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from sae.activations.cache import StoreSpec, refuse_write, store_lock
from sae.activations.chunks import ChunkedArray
from sae.activations.stats import RunningStats, all_finite
from sae.activations.store import ActivationStore
from sae.errors import StoreError
from sae.language.corpus import Corpus
from sae.language.lm import LanguageModel
from sae.language.text import Tokenizer, build_contexts
from sae.progress import progress
from sae.types import Point

log = logging.getLogger(__name__)


@runtime_checkable
class LoadsLM(Protocol):
    """Source of an LM; `sae.language.sources.LMSource` is one."""

    @property
    def name(self) -> str:
        """Name to show to people, such as `smollm2-135m`."""
        ...

    def load(self, device: str = "cpu") -> LanguageModel:
        """The LM, ready to run."""
        ...

    def load_tokenizer(self) -> Tokenizer:
        """Its tokenizer, without the weights where that is possible."""
        ...

    def identity(self) -> dict:
        """Identity of the LM: everything in it that decides the activations."""
        ...

    def to_config(self) -> dict:
        """Configuration that builds the source again."""
        ...


def harvest(
    spec: StoreSpec,
    points: Sequence[Point],
    *,
    source: LoadsLM,
    corpus: Corpus,
    batch_contexts: int = 32,
    device: str = "cpu",
) -> ActivationStore:
    """Return the store of `spec` with at least these points in it.

    If all are there the LM is not even loaded. Otherwise one LM pass adds the missing ones. A
    killed harvest is continued; two processes that want the same store harvest it once.

    Args:
        spec: Identity of text, order and values.
        points: Points where activations are read; none for a store that holds tokens alone.
        source: Source of the LM.
        corpus: The text.
        batch_contexts: Contexts handed to the LM at once.
        device: Device of the LM.

    Raises:
        StoreError: If the disk is full or not writable, the store is damaged, or values do not fit
            into `spec.dtype`.
        SiteError: If the LM has no such point.
        SourceError: If LM or text cannot be loaded, or the text is too short.
    """
    found = _complete(spec, points)
    if found is not None:
        return found
    with store_lock(spec.folder):
        found = _complete(spec, points)  # another process may have harvested it meanwhile
        if found is not None:
            return found
        lm = source.load(device)
        for point in points:
            lm.check(point)
        store = _open_or_create(spec, source, corpus)
        there = store.points()
        missing = sorted({point for point in points if point not in there}, key=str)
        arrays = {point: store.partial(point, lm.width(point)) for point in missing}
        if arrays:
            _fill(store, arrays, lm, batch_contexts, device)
        with suppress(OSError):  # stays if a killed harvest of other points left something there
            (store.folder / "partial").rmdir()
    return store


def rows_of(
    tokens: Int32[np.ndarray, "contexts ctx"],
    points: Sequence[Point],
    lm: LanguageModel,
    spec: StoreSpec,
    *,
    batch_contexts: int,
    device: str,
    advance: Callable[[int], None] = lambda num_tokens: None,
) -> dict[Point, Float[Tensor, "rows d_in"]]:
    """Activations at some points of some contexts: the rows that a store keeps of them.

    Args:
        tokens: The contexts.
        points: Points where activations are read.
        lm: The LM, on `device`.
        spec: Decides which positions are kept, and in which dtype.
        batch_contexts: Contexts handed to the LM at once.
        device: Device of the LM.
        advance: Function that gets the number of tokens after each batch.

    Raises:
        StoreError: If a value is not finite or does not fit into the dtype.
    """
    captured: dict[Point, list[Tensor]] = {point: [] for point in points}
    for start in range(0, len(tokens), batch_contexts):
        batch = torch.from_numpy(tokens[start : start + batch_contexts])
        for point, x in lm.capture(batch.to(device).long(), list(points)).items():
            rows = x[:, spec.ctx - spec.rows_per_context :].flatten(0, 1)
            captured[point].append(_as_stored(rows, spec.dtype, point))
        advance(batch.numel())
    return {point: torch.cat(captured.pop(point)) for point in points}


def _complete(spec: StoreSpec, points: Sequence[Point]) -> ActivationStore | None:
    if not (spec.folder / "metadata.json").exists():
        return None
    store = ActivationStore.open(spec)
    return store if set(points) <= set(store.points()) else None


def _open_or_create(spec: StoreSpec, source: LoadsLM, corpus: Corpus) -> ActivationStore:
    if (spec.folder / "metadata.json").exists():
        return ActivationStore.open(spec)
    contexts = build_contexts(
        corpus,
        source.load_tokenizer(),
        split=spec.split,
        ctx=spec.ctx,
        num_tokens=spec.tokens,
        seed=spec.seed,
        val_fraction=spec.val_fraction,
        test_fraction=spec.test_fraction,
    )
    names = {"lm": source.name, "corpus": corpus.name}
    return ActivationStore.create(spec, contexts.tokens, contexts.document, names)


def _fill(
    store: ActivationStore,
    arrays: Mapping[Point, ChunkedArray],
    lm: LanguageModel,
    batch_contexts: int,
    device: str,
) -> None:
    """Write all chunks of all arrays and publish them.

    The LM sees the contexts of whole chunks at once, in batches that start at chunk borders, so
    that a continued harvest computes the same batches and hence the same bits.
    """
    spec, num_contexts = store.spec, store.num_contexts
    chunks_at_once = max(1, batch_contexts // spec.contexts_per_chunk)
    num_chunks = -(-num_contexts // spec.contexts_per_chunk)
    groups = [
        range(i, min(i + chunks_at_once, num_chunks)) for i in range(0, num_chunks, chunks_at_once)
    ]
    stats = {point: RunningStats(array.layout.width) for point, array in arrays.items()}
    finished = _read_back(groups, arrays, stats)
    _check_space(store, arrays, groups[finished:])
    if not finished:
        for array in arrays.values():
            array.create()

    first = finished * chunks_at_once * spec.contexts_per_chunk
    title = f"harvest {', '.join(map(str, arrays))} ({spec.split})"
    with progress(title, num_contexts * spec.ctx, done=first * spec.ctx) as advance:
        for group in groups[finished:]:
            stop = min(first + len(group) * spec.contexts_per_chunk, num_contexts)
            captured = rows_of(
                store.tokens[first:stop], list(arrays), lm, spec, batch_contexts=batch_contexts,
                device=device, advance=advance,
            )  # fmt: skip
            for point, array in arrays.items():
                parts = captured.pop(point).split(array.layout.chunk_rows)
                for i, rows in zip(group, parts, strict=True):
                    array.write(i, rows)
                    stats[point].update(rows)
            first = stop
    for point, array in arrays.items():
        store.publish(point, array, stats[point].result())


def _read_back(
    groups: Iterable[range],
    arrays: Mapping[Point, ChunkedArray],
    stats: Mapping[Point, RunningStats],
) -> int:
    """Count what a killed harvest finished: leading groups whose chunks are whole everywhere."""
    finished = 0
    for group in groups:
        try:
            found = [(point, array.read(i)) for point, array in arrays.items() for i in group]
        except StoreError:  # not written yet, or torn by a crash: from here on it is harvested
            break
        for point, rows in found:
            stats[point].update(rows)
        finished += 1
    if finished:
        log.info(
            "Continuing a harvest of %s after chunk %d.", ", ".join(map(str, arrays)), finished
        )
    return finished


def _check_space(
    store: ActivationStore, arrays: Mapping[Point, ChunkedArray], groups: Sequence[range]
) -> None:
    num_chunks = sum(map(len, groups))
    needed = sum(num_chunks * array.layout.chunk_bytes for array in arrays.values())
    if needed > shutil.disk_usage(store.folder).free:
        refuse_write(store.folder, OSError("too little space on the disk"), needed)


def _as_stored(
    rows: Float[Tensor, "rows d_in"], dtype: str, point: Point
) -> Float[Tensor, "rows d_in"]:
    stored = rows.to(getattr(torch, dtype)).cpu()
    if all_finite(stored):
        return stored
    if all_finite(rows):
        raise StoreError(
            f"An activation at {point} is {rows.abs().max().item():.3g}, too large for {dtype} "
            f"(at most {torch.finfo(stored.dtype).max:.3g}). Store as dtype=bfloat16 or float32."
        )
    raise StoreError(
        f"The LM's activations at {point} hold NaN or infinite values. "
        "Load the LM in float32 or bfloat16, and check its weights."
    )
