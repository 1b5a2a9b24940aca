"""Order of rows. It depends on (seed, epoch) alone.

The rows of all epochs form one endless stream. In each epoch the chunks are permuted; consecutive
chunks form blocks of about `buffer_rows` rows; the rows of a block are permuted in memory. Batch
number `s` is rows `s * batch_size` to `(s + 1) * batch_size` of the stream, over the borders of
blocks and epochs. So any step is reached by arithmetic, and only the blocks needed are read.
"""

import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count, takewhile
from queue import Queue
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from sae.activations.rows import Rows

T = TypeVar("T")


@dataclass(frozen=True)
class Block:
    """Chunks that are shuffled together.

    Attributes:
        epoch: Pass over the data, from 0.
        index: Number of the block in its epoch.
        chunks: Its chunks, in the order they are read.
        start: Its first row, counted over the stream of all epochs.
        stop: The row after its last.
    """

    epoch: int
    index: int
    chunks: tuple[int, ...]
    start: int
    stop: int


class ShuffledOrder:
    """The order of a stream of epochs over `rows`.

    Args:
        rows: The rows to shuffle; only their number and chunks are read.
        seed: Other seeds give other orders.
        buffer_rows: Rows shuffled together, rounded down to whole chunks (at least one).
    """

    def __init__(self, rows: Rows, *, seed: int, buffer_rows: int):
        self.num_rows, self.seed = rows.num_rows, seed
        self._sizes = np.array(
            [stop - start for start, stop in map(rows.chunk_bounds, range(rows.num_chunks))]
        )
        self._block_chunks = max(1, buffer_rows // int(self._sizes.max()))

    def blocks(self, epoch: int) -> list[Block]:
        """The blocks of one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._sizes))
        stops = epoch * self.num_rows + np.cumsum(self._sizes[order])
        blocks = []
        start = epoch * self.num_rows
        for index, first in enumerate(range(0, len(order), self._block_chunks)):
            chunks = order[first : first + self._block_chunks].tolist()
            stop = int(stops[first + len(chunks) - 1])
            blocks.append(Block(epoch, index, tuple(chunks), start, stop))
            start = stop
        return blocks

    def blocks_between(self, start: int, stop: int) -> Iterator[Block]:
        """The blocks that hold rows `start` to `stop` of the stream."""
        stream = (b for epoch in count(start // self.num_rows) for b in self.blocks(epoch))
        needed = takewhile(lambda block: block.start < stop, stream)
        return (block for block in needed if block.stop > start)

    def permutation(self, block: Block) -> Int64[Tensor, " rows"]:
        """Order of the rows of a block."""
        seed = np.random.SeedSequence([self.seed, block.epoch, block.index])
        generator = torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        return torch.randperm(block.stop - block.start, generator=generator)


def shuffled_batches(
    rows: Rows,
    order: ShuffledOrder,
    *,
    batch_size: int,
    start_step: int,
    stop_step: int,
    scale: float | Tensor,
    rank: int = 0,
    world_size: int = 1,
    read_ahead: bool = True,
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """Batches `start_step` to `stop_step` of the stream, float32, times `scale`.

    Holds the block that is served and, with `read_ahead`, the one after it.

    Args:
        rows: The rows to read.
        order: Order of the rows.
        batch_size: Rows in a step, over all ranks.
        start_step: First step.
        stop_step: The step after the last.
        scale: Factor on every value, or one for each column.
        rank: Index of the wanted slice, out of `world_size` equal ones of each batch.
        world_size: Number of slices.
        read_ahead: Read the next block in a thread; changes nothing about the batches.
    """
    share = batch_size // world_size
    needed = order.blocks_between(start_step * batch_size, stop_step * batch_size)
    closed = threading.Event()  # a block may take the LM a minute: leaving does not wait for it
    loaded = ((block, _load(rows, block, closed)) for block in needed)
    if read_ahead:
        loaded = prefetch(loaded, closed)
    step, batch, filled = start_step, torch.empty(share, rows.d_in), 0
    with closing(loaded):
        for block, data in loaded:
            permutation = order.permutation(block)
            while step < stop_step:
                first = step * batch_size + rank * share - block.start  # counted in this block
                inside = permutation[max(first, 0) : first + share]
                if len(inside):
                    batch[filled : filled + len(inside)] = data.index_select(0, inside)
                    filled += len(inside)
                if filled < share:
                    break  # the rest of this batch is in the next block
                yield batch.mul_(scale)
                step, batch, filled = step + 1, torch.empty(share, rows.d_in), 0


def _load(rows: Rows, block: Block, closed: threading.Event) -> Shaped[Tensor, "rows d_in"]:
    data, filled = None, 0
    for i in block.chunks:
        if closed.is_set():
            raise InterruptedError("nobody waits for this block any more")
        chunk = rows.read(i)
        if data is None:
            data = torch.empty(block.stop - block.start, rows.d_in, dtype=chunk.dtype)
        data[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    assert data is not None
    return data


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def prefetch(
    source: Iterator[T], closed: threading.Event | None = None
) -> Generator[T, None, None]:
    """Yield what `source` yields, made in a thread, one item ahead of the consumer.

    An error in the thread is raised in the consumer. The thread ends when the generator is
    exhausted, closed or garbage-collected.

    Args:
        source: Makes the items.
        closed: Set when nobody waits any more, for a source that wants to stop within an item.

    Example:
        >>> list(prefetch(iter("abc")))
        ['a', 'b', 'c']
    """
    items: Queue[T | _End] = Queue()
    slot, closed = threading.Semaphore(), closed or threading.Event()

    def work() -> None:
        error = None
        try:
            while slot.acquire() and not closed.is_set():
                items.put(next(source))
        except StopIteration:
            pass
        except BaseException as caught:
            error = caught
        items.put(_End(error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _End):
            # The consumer lets go of the item before when it gets this one: two are held at most.
            slot.release()
            yield item
        if item.error is not None:
            raise item.error
    finally:
        closed.set()
        slot.release()
        if threading.current_thread() is not thread:  # garbage collection runs in any thread
            thread.join()
