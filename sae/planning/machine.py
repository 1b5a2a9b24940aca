"""What this machine has free, and how fast it multiplies."""

import shutil
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch.nn.functional import linear

_SECONDS_A_PRODUCT = 0.25
_GROUPS = Path("/sys/fs/cgroup")


class Product(NamedTuple):
    """A matrix product [rows inner] @ [inner columns]: where a stage spends its operations."""

    rows: int
    inner: int
    columns: int
    dtype: str


@dataclass
class Machine:
    """Free resources and, measured when asked for, speed.

    Attributes:
        device: Where LM and dictionary live, `"cpu"` or `"cuda"`.
        memory: Bytes of RAM that this process can have, what it holds already included.
        rates: Operations a second of the products that were measured.
    """

    device: str
    memory: int
    rates: dict[Product, float] = field(default_factory=dict)

    @classmethod
    def here(cls, device: str) -> "Machine":
        """This machine, as busy as it is now."""
        return cls(device, available_memory())

    def rate(self, product: Product) -> float:
        """Operations a second at this product: the median of a quarter of a second."""
        if product not in self.rates:
            self.rates[product] = _measure(product, self.device)
        return self.rates[product]


def available_memory() -> int:
    """Bytes that this process can have: what is free, within the limit of its control group."""
    own = psutil.Process().memory_info().rss
    free = psutil.virtual_memory().available + own
    return min([free, *_group_limits()])


def free_disk(folder: Path) -> int:
    """Free bytes where `folder` is, or would be made."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free


def _group_limits() -> list[int]:
    """Limits that a container or a batch system such as Slurm sets (Linux, cgroup v2)."""
    try:
        name = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        folder, limits = _GROUPS / name, []
        for group in (folder, *folder.parents):
            file = group / "memory.max"
            if (
                group.is_relative_to(_GROUPS)
                and file.exists()
                and file.read_text().strip() != "max"
            ):
                limits.append(int(file.read_text()))
        return limits
    except (OSError, ValueError):
        return []


@torch.no_grad()
def _measure(product: Product, device: str) -> float:
    dtype = getattr(torch, product.dtype)
    with torch.random.fork_rng():
        x = torch.randn(product.rows, product.inner).to(device, dtype)
        weight = torch.randn(product.columns, product.inner).to(device, dtype)
    times: list[float] = []
    linear(x, weight)  # the first one chooses a kernel
    stop = time.perf_counter() + _SECONDS_A_PRODUCT
    while len(times) < 3 or (time.perf_counter() < stop and len(times) < 100):
        _wait(device)
        start = time.perf_counter()
        linear(x, weight)
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2 * product.rows * product.inner * product.columns / statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
