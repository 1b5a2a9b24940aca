"""Messages of several training processes (ranks); alone, a process talks to itself.

Lightning's DDP averages the gradients. What else a step decides on must be equal on every rank,
or their weights and counters drift apart: it goes through these functions, and so there are no
ranks anywhere else.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Sum of the ranks' values; one process gets its own tensor back.

    Example:
        >>> sum_over_ranks(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    if world_size() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
    return value


def mean_over_ranks(value: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Mean of the ranks' values: of means over equal shares, the mean over the whole batch."""
    return value if world_size() == 1 else sum_over_ranks(value) / world_size()


def any_rank(decision: bool, device: torch.device) -> bool:
    """True if any rank says yes; `device` is where its tensors are."""
    if world_size() == 1:
        return decision
    return bool(sum_over_ranks(torch.tensor(int(decision), device=device)) > 0)


def gather(value: T) -> list[T]:
    """Values of all ranks, by rank; they are sent as pickles between our own processes.

    Example:
        >>> gather("mine")
        ['mine']
    """
    found: list[Any] = [value]
    if world_size() > 1:
        found *= world_size()
        dist.all_gather_object(found, value)
    return found


def copy_from_first_rank(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with those of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), src=0)


def part() -> None:
    """Wait for all ranks and end their group: from here on, each is a process of its own."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
