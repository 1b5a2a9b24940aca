"""Run the lower blocks of an LM once for several passes over the same tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Replay:
    """The lowest blocks of an LM: the first pass runs them, later ones repeat what came out.

    What lies around the blocks (embeddings, masks, rotary tables) is the LM's own code and runs in
    every pass, so this holds for every family; hooks on the blocks run as well.

    Args:
        blocks: The lowest blocks, in order; none means that every pass is a full one.

    Example:
        >>> import torch
        >>> calls, block = [], nn.Identity()
        >>> block.forward = lambda x: calls.append(1) or x + 1
        >>> replay = Replay([block])
        >>> for _ in range(3):
        ...     with replay.one_pass():
        ...         out = block(torch.zeros(2))
        >>> out, len(calls)
        (tensor([1., 1.]), 1)
    """

    def __init__(self, blocks: Sequence[nn.Module]):
        self._blocks = list(blocks)
        self._output: Any = None

    @contextmanager
    def one_pass(self, batch: int | None = None) -> Iterator[None]:
        """Forward passes inside run the blocks, or repeat their output if it is known.

        Args:
            batch: Copies of the output, where the first pass had one context and these have many.
        """
        if not self._blocks:
            yield
        elif self._output is None:
            # First of all hooks: it sees the value before any replacement, which comes anew.
            handle: RemovableHandle = self._blocks[-1].register_forward_hook(
                self._keep, prepend=True
            )
            try:
                yield
            finally:
                handle.remove()
        else:
            own = [block.__dict__.get("forward") for block in self._blocks]

            def repeat(*inputs: Any, **options: Any) -> Any:
                return _copied(self._output, batch)

            for block in self._blocks:
                block.forward = repeat
            try:
                yield
            finally:
                for block, forward in zip(self._blocks, own, strict=True):
                    del block.forward
                    if forward is not None:
                        block.forward = forward

    def _keep(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self._output = _copied(output)


def _copied(output: Any, batch: int | None = None) -> Any:
    """A copy, which a replacement may change in place. Blocks return a tensor or a tuple."""
    if isinstance(output, Tensor):
        many = output if batch is None else output.expand(batch, *output.shape[1:])
        return many.clone()
    return (_copied(output[0], batch), *output[1:])
