"""Free memory and disk of this machine."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")


@dataclass
class Machine:
    """Free resources.

    Attributes:
        device: Device of LM and dictionary, `"cpu"` or `"cuda"`.
        memory: Bytes of RAM available to this process, including those that it holds.
    """

    device: str
    memory: int

    @classmethod
    def here(cls, device: str) -> "Machine":
        """This machine, as busy as it is now."""
        return cls(device, available_memory())


def available_memory() -> int:
    """Bytes of free memory for this process, within the limit of its control group."""
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
