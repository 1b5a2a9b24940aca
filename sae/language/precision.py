"""An LM that computes in float32 for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 inside, and have its own dtype again afterwards.

    Single latents move logits by less than bfloat16 keeps of them. Parameters go to float32 and
    back without loss; buffers, such as rotary tables, stay as they are.

    Args:
        model: Model with floating-point parameters.
    """
    before = {name: one.dtype for name, one in model.named_parameters()}
    try:
        for one in model.parameters():
            one.data = one.data.to(torch.float32)
        yield
    finally:
        for name, one in model.named_parameters():
            one.data = one.data.to(before[name])
