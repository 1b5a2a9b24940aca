"""Pieces of all benchmarks: interleaved timing, reference products, the machine, the result.

The clock of a machine drifts by 10 to 20 percent within seconds, so nothing is timed for long:
in each round everything that will be compared runs once, in turn, and what is reported is the
median over the rounds of the ratios within a round, with their quartiles.
"""

import argparse
import importlib
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae.dtypes import fast_dtype
from sae.provenance import provenance, write_json

RESULTS = Path(__file__).parents[1] / "docs" / "results"
Cell = str | float | int | None


class Spread(NamedTuple):
    """Median and quartiles of one value a round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}–{self.high:.3g})"


def spread(values: Sequence[float]) -> Spread:
    """Median, lower and upper quartile.

    Example:
        >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
    """
    low, median, high = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the ratios within each round.

    Example:
        >>> ratios([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).median
        2.0
    """
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def interleaved(
    turns: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 2,
    device: str = "cpu",
    after: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of every turn in each round.

    Args:
        turns: By name; each is called once a round. Every second round goes backwards, so that
            nobody always runs after the same neighbour.
        rounds: Rounds that count.
        warmup: Rounds before them that do not: compilation, allocation, page faults.
        device: What to wait for before the clock is read.
        after: Called after each turn, when the clock stands still.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for i in range(-warmup, rounds):
        for name in list(turns) if i % 2 else reversed(list(turns)):
            synchronize(device)
            start = time.perf_counter()
            turns[name]()
            synchronize(device)
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
            after()
    return seconds


def synchronize(device: str) -> None:
    """Wait for what was started on an accelerator."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def has_bf16(device: str) -> bool:
    """Whether the hardware multiplies bfloat16."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return fast_dtype("sae", device) == "bfloat16"  # as trainer.precision=auto asks


class DenseProducts:
    """The five matrix products of a dense training step, and nothing else: 10 B d F operations.

    Args:
        batch: Rows, B.
        d_in: Width, d.
        d_sae: Latents, F.
        dtype: What is multiplied.
        device: Where.
    """

    def __init__(self, batch: int, d_in: int, d_sae: int, dtype: torch.dtype, device: str) -> None:
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        self.x, self.W, self.f = make(batch, d_in), make(d_sae, d_in), make(batch, d_sae)
        self.wide, self.narrow = torch.empty_like(self.f), torch.empty_like(self.x)
        self.weights = torch.empty_like(self.W)
        self.flops = 10 * batch * d_in * d_sae

    def __call__(self) -> None:
        """Multiply."""
        torch.mm(self.x, self.W.T, out=self.wide)  # encode
        torch.mm(self.f, self.W, out=self.narrow)  # decode
        torch.mm(self.f.T, self.x, out=self.weights)  # gradient of the decoder
        torch.mm(self.x, self.W.T, out=self.wide)  # gradient of the codes
        torch.mm(self.f.T, self.x, out=self.weights)  # gradient of the encoder


class Copy:
    """A copy in memory much larger than the caches: reads and writes `size` bytes each."""

    def __init__(self, size: int, device: str) -> None:
        self.source = torch.ones(size // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.bytes = 2 * size

    def __call__(self) -> None:
        """Copy."""
        self.target.copy_(self.source)


def machine() -> dict[str, Any]:
    """Hardware, versions, commit, and how busy the machine was when the benchmark began."""
    flags, model = set(), platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        known = {key.strip(): value.strip() for key, _, value in lines}
        model, flags = known.get("model name", model), set(known.get("flags", "").split())
    described = provenance()
    described["cpu"] = model
    described["cores"] = len(os.sched_getaffinity(0))
    described["memory_gib"] = round(
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
    )
    described["vector_instructions"] = sorted(
        flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    )
    described["load_at_start"] = round(os.getloadavg()[0], 2)
    module = getattr(sys.modules["__main__"], "__spec__", None)
    described["command"] = " ".join(
        ["python -m", module.name if module else "?", *sys.argv[1:]]
    ).replace(".__main__", "")
    return described


@dataclass
class Table:
    """Rows for people; floats are shown with three digits."""

    title: str
    columns: list[str]
    rows: list[list[Cell | Spread]] = field(default_factory=list)

    def markdown(self) -> str:
        """As a table of the GitHub dialect."""
        lines = ["| " + " | ".join(self.columns) + " |", "|---" * len(self.columns) + "|"]
        lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in self.rows]
        return f"### {self.title}\n\n" + "\n".join(lines) + "\n"


@dataclass
class Result:
    """Result of a benchmark."""

    name: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine)

    def write(self, folder: Path, figure: Any = None, *, show: bool = True) -> Path:
        """Save `<date>-<name>.json`, `.md` and `.png`, show the tables; returns the `.md`."""
        stem = f"{datetime.now(UTC):%Y-%m-%d}-{self.name}"
        write_json(folder / f"{stem}.json", asdict(self))
        if figure is not None:
            figure.savefig(folder / f"{stem}.png", dpi=120, bbox_inches="tight")
        path = folder / f"{stem}.md"
        path.write_text(self.markdown(f"{stem}.png" if figure else None))
        if show:
            sys.stdout.write(path.read_text())
        return path

    def markdown(self, picture: str | None) -> str:
        """The page: machine, tables, notes, picture."""
        m = self.machine
        versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items() if v)
        commit = m["git"] or {"commit": "unknown", "changed": False}
        parts = [
            f"# {self.name}, {m['time_utc']}\n",
            f"`{m['command']}`\n",
            f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['memory_gib']} GiB, "
            f"{' '.join(m['vector_instructions'])}; GPU: {m['gpu'] or 'none'}; load at start "
            f"{m['load_at_start']}; Python {m['python']}, {versions}; commit "
            f"{commit['commit'][:10]}{' with changes' if commit['changed'] else ''}.\n",
            "Settings: " + ", ".join(f"{k}={v}" for k, v in self.settings.items()) + ".\n",
            *(table.markdown() for table in self.tables),
            *(f"- {note}" for note in self.notes),
            f"\n![{self.name}]({picture})" if picture else "",
        ]
        return "\n".join(parts) + "\n"


def _cell(value: Cell | Spread) -> str:
    if value is None:
        return "–"
    if isinstance(value, Spread):
        return str(value)
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--rounds", type=int, help="rounds of interleaved timing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--name", help="of the result; default: that of the benchmark")
    return parser


def show_log() -> None:
    """Progress on stderr, and nothing from libraries below a warning."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True
    )
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    warnings.filterwarnings("ignore")  # other libraries', nothing that a reader could act on


def drawn(plot: Callable[..., Any], *args: object) -> Any:
    """The picture, or None where matplotlib is not installed."""
    return plot(*args) if find("matplotlib") else None


def find(module: str) -> Any:
    """An optional module, or None where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # it is there, but something that it needs is not
        return None
