"""Count of the tokens that an LM reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Reads:
    """Tokens that were read so far.

    Attributes:
        tokens: Their number; a token that is read in two passes counts twice.
    """

    tokens = 0


@contextmanager
def reads(model: nn.Module) -> Iterator[Reads]:
    """Count the tokens of every pass that a model makes while the block runs.

    Args:
        model: A causal LM, which gets its tokens as `input_ids` or as its first argument.

    Example:
        >>> import torch
        >>> model = nn.Embedding(5, 2)
        >>> with reads(model) as read:
        ...     vectors = model(torch.tensor([[1, 2, 4]]))
        >>> read.tokens
        3
    """
    found = Reads()

    def count(module: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        ids = named.get("input_ids", inputs[0] if inputs else None)
        found.tokens += 0 if ids is None else ids.numel()

    handle = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
