"""Stages of a run and what each costs, added up over all SAEs of a command."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sae.errors import ConfigError
from sae.planning.machine import Machine, free_disk

PROGRAM_BYTES = 700_000_000
"""Python with PyTorch, Lightning and transformers, before any data."""
REMEDIES = {
    "blocks": "activations.buffer_rows",
    "dictionary": "dict_ratio",
    "step": "trainer.batch_size or dict_ratio",
    "resampling": "dict_ratio or resample.sample_tokens",
    "validation": "dict_ratio",
    "test rows": "dict_ratio or eval.core.batch_rows",
    "harvest batch": "activations.batch_contexts or activations.ctx",
    "logits": "eval.downstream.batch_contexts",
    "kept rows": "activations.test_tokens",
    "LM": "lm, or lm.dtype=bfloat16",
    "conversion": "lm",
}
"""Settings to change where a part of the memory is too large."""


@dataclass
class Stage:
    """Costs of one stage.

    Attributes:
        name: `fetch`, `harvest`, `train` or `evaluate`.
        found: Work that is done already, in words.
        disk: Bytes that the cache will grow by; None: unknown until the LM is there.
        memory: Bytes of RAM held at its peak beside the program, by what holds them; None: unknown.
        steps: Optimiser steps.
    """

    name: str
    found: str = ""
    disk: int | None = 0
    memory: dict[str, int] | None = field(default_factory=dict)
    steps: int | None = 0

    @property
    def peak(self) -> int | None:
        """Bytes of RAM at the peak, the program included."""
        return None if self.memory is None else PROGRAM_BYTES + sum(self.memory.values())

    def hold(self, memory: Mapping[str, int]) -> None:
        """Raise the known peak to these bytes, if they are more."""
        if self.memory is not None and sum(memory.values()) > sum(self.memory.values()):
            self.memory = dict(memory)


@dataclass
class Plan:
    """All stages of a command, in order.

    Attributes:
        stages: Stages in order.
        members: Number of SAEs.
        device: Device of LM and dictionary.
        cache: Folder that the cache is in.
        streamable: True if a run without a cache is possible.
    """

    stages: list[Stage]
    members: int
    device: str
    cache: Path
    streamable: bool = False

    @property
    def disk(self) -> int:
        """Bytes that the cache will grow by, without stages whose size is not known."""
        return sum(stage.disk or 0 for stage in self.stages)

    @property
    def largest(self) -> Stage:
        """The stage that decides how much RAM is needed."""
        return max(self.stages, key=lambda stage: stage.peak or 0)

    def check_fits(self, memory: int, disk: int) -> None:
        """Refuse what cannot fit, before anything is started.

        Args:
            memory: Bytes of RAM available.
            disk: Free bytes where the cache is.

        Raises:
            ConfigError: If it does not fit; the message gives both sizes and what to change.
        """
        if self.disk > disk:
            stream = "activations.stream=true (no cache), " if self.streamable else ""
            raise ConfigError(
                f"This needs {size(self.disk)} of disk in {self.cache}, and {size(disk)} are free "
                f"there. Ask for fewer tokens (tokens=…, epochs=… reads them more than once), "
                f"{stream}fewer layers and sites, or set SAE_CACHE to a folder on another disk."
            )
        needed = self.largest.peak or 0
        if needed > memory and self.largest.memory:
            parts = sorted(self.largest.memory.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {size(held)}" for name, held in parts)
            changes = "; ".join(dict.fromkeys(REMEDIES[name] for name, _ in parts[:2]))
            raise ConfigError(
                f"This needs about {size(needed)} of memory to {self.largest.name} (the program "
                f"{size(PROGRAM_BYTES)}, {shown}), and {size(memory)} are available. Make smaller: "
                f"{changes}."
            )


def check_fits(plan: Plan, machine: Machine) -> None:
    """`Plan.check_fits` on this machine. On a GPU only the disk is checked."""
    # What is held on a GPU is not in RAM, and which part of it is depends on the run.
    memory = machine.memory if plan.device == "cpu" else 2**62
    plan.check_fits(memory, free_disk(plan.cache))


def size(count: int | float) -> str:
    """Bytes in words.

    Example:
        >>> size(1_500_000), size(2_345_000_000), size(12)
        ('1.5 MB', '2.3 GB', '0.0 MB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
