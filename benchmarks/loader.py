"""Work around the training step: reading batches from disk, and Lightning.

    python -m benchmarks.loader                       the main job
    python -m benchmarks.loader sae=topk k=64         any override of train.py

Activations are those of the configured cache (harvested where they are not there yet).
"""

import copy
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor

from benchmarks.common import (
    Result,
    Table,
    arguments,
    drawn,
    interleaved,
    ratios,
    spread,
    synchronize,
)
from benchmarks.contenders import OurStep
from benchmarks.runs import configuration, prepared_data, temporary_cache
from callbacks.from_config import build_loggers
from callbacks.manifest import Manifest
from callbacks.trainer import build_trainer
from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.activations.sources import ActivationSource, LMActivations
from sae.activations.store import ActivationStore
from sae.reports.style import GREY, axes_of
from sae.training.from_config import build_module, resolve_device

ACTIONS_SHOWN = 12


def main(argv: Sequence[str] | None = None) -> Path:
    """Run the benchmark; returns the page that was written."""
    parser = arguments(__doc__)
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument("--segment", type=int, help="steps between two changes of turn")
    given = parser.parse_args(argv)
    given.rounds = given.rounds or (2 if given.quick else 12)
    given.segment = given.segment or (4 if given.quick else 50)
    result = Result(given.name or "loader", {k: v for k, v in vars(given).items() if k != "out"})
    with temporary_cache(given.quick):
        config = configuration(given.overrides, given.quick)
        data = prepared_data(config)
        result.tables.append(_reading(data, given.rounds, result))
        result.tables.append(_waiting(config, data, given))
        tables, laps = _lightning(config, given)
        result.tables += tables
    result.raw["lightning"] = {"seconds": laps}
    given.out.mkdir(parents=True, exist_ok=True)
    return result.write(given.out, drawn(_plot, laps))


def _reading(data: ActivationDataModule, rounds: int, result: Result) -> Table:
    """A pass over the training split, by the data module and as plain reads of its files."""
    source = data.source
    files = _files(source.store("train")) if isinstance(source, LMActivations) else []
    rows, size = data.rows("train").num_rows, sum(file.stat().st_size for file in files)
    one_pass = _watched(data, epochs=1)

    def load() -> None:
        for _ in one_pass.train_dataloader():
            pass

    def read() -> None:
        for file in files:
            file.read_bytes()

    def cold(turn: Any) -> Any:
        def turn_without_page_cache() -> None:
            _forget(files)
            turn()

        return turn_without_page_cache

    turns = {"data module, warm": load, "plain reads, warm": read}
    turns |= {"data module, cold": cold(load), "plain reads, cold": cold(read)}
    seconds = interleaved(turns, max(2, rounds // 3), warmup=1)
    result.raw["reading"] = {"seconds": seconds}
    table = Table(
        f"A pass over {rows:,} rows ({size / 1e6:.0f} MB) on disk",
        ["reader", "rows/s", "MB/s", "÷ plain reads"],
    )
    for name, taken in seconds.items():
        rate = spread([rows / s for s in taken])
        plain = seconds["plain reads, " + name.split(", ")[1]]
        megabytes = spread([size / 1e6 / s for s in taken])
        table.rows.append([name, rate, megabytes, ratios(plain, taken)])
    result.notes.append(
        "Cold: the files' pages were given back to the system before the pass (posix_fadvise); "
        "what lies below, a disk's or a host's cache, stays."
    )
    return table


def _files(store: ActivationStore) -> list[Path]:
    folder = store.folder / "activations"
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _forget(files: Sequence[Path]) -> None:
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Watched(ActivationDataModule):
    """Adds up the time that its reader waits for batches."""

    waited = 0.0

    def train_dataloader(self) -> Any:
        """As the base, with a clock around each batch."""
        batches = super().train_dataloader()
        inner = batches.batches

        def timed() -> Iterator[Tensor]:
            iterator = inner()
            while True:
                start = time.perf_counter()
                batch = next(iterator, None)
                self.waited += time.perf_counter() - start
                if batch is None:
                    return
                yield batch

        batches.batches = timed
        return batches


def _watched(
    data: ActivationDataModule, source: ActivationSource | None = None, epochs: int | None = None
) -> Watched:
    normalize: Any = data.normalize
    return Watched(
        source or data.source,
        batch_size=data.batch_size,
        epochs=epochs or data.epochs,
        buffer_rows=data.buffer_rows,
        seed=data.seed,
        normalize=normalize,
    )


def _waiting(config: dict[str, Any], data: ActivationDataModule, given: Any) -> Table:
    """Steps in a loop that reads its batches from disk, and from the same rows in memory."""
    table = Table(
        f"The bare step, reading its batches ({given.segment} steps a time)",
        ["from", "vectors/s", "share of the time waited for batches"],
    )
    rows = data.rows("train")
    chunks = [rows.read(i) for i in range(rows.num_chunks)]
    in_memory = TensorActivations(torch.cat(chunks))
    device = resolve_device(config["trainer"]["accelerator"])
    for name, source in {"disk": data.source, "memory": in_memory}.items():
        watched = _watched(data, source)
        step = OurStep(build_module(config, data).dictionary.to(device), device)
        shares, rates = [], []
        start, waited = time.perf_counter(), 0.0
        for steps, x in enumerate(watched.train_dataloader(), start=1):
            step(x.to(device))
            if steps % given.segment == 0:
                synchronize(device)
                now = time.perf_counter()
                shares.append((watched.waited - waited) / (now - start))
                rates.append(given.segment * data.batch_size / (now - start))
                start, waited = now, watched.waited
            if len(shares) == given.rounds:
                break
        if shares:
            table.rows.append([name, spread(rates), spread(shares)])
    return table


class Alternating(L.Callback):
    """Stops training every `segment` steps to take the bare step over the batches just seen.

    Args:
        step: The bare step, on a dictionary of its own.
        segment: Steps.
        laps: So many pairs of times, then nothing more is done.
    """

    def __init__(self, step: OurStep, segment: int, laps: int) -> None:
        self.step, self.segment, self.laps = step, segment, laps
        self.seconds: dict[str, list[float]] = {"Trainer.fit": [], "bare loop": []}
        self.validations: list[float] = []
        self.batches: list[Tensor] = []
        self.start = self.paused = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is no training."""
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on, as if it had not been."""
        self.validations.append(time.perf_counter() - self.paused)
        self.start += self.validations[-1]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Tensor, batch_idx: int
    ) -> None:
        """Once a segment is full its turn ends; the bare loop has the next one."""
        if len(self.batches) == self.segment:
            synchronize(self.step.device)
            middle = time.perf_counter()
            for x in self.batches:
                self.step(x)
            synchronize(self.step.device)
            end = time.perf_counter()
            self.seconds["Trainer.fit"].append(middle - self.start)
            self.seconds["bare loop"].append(end - middle)
            self.batches.clear()
            trainer.should_stop = len(self.seconds["bare loop"]) > self.laps
            self.start = time.perf_counter()
        self.batches.append(batch)


def _lightning(config: dict[str, Any], given: Any) -> tuple[list[Table], dict[str, list[float]]]:
    """`Trainer.fit` as train.py builds it against the bare step, in turns on the same batches."""
    data = _watched(prepared_data(config))
    module = build_module(config, data)
    device = resolve_device(config["trainer"]["accelerator"])
    step = OurStep(copy.deepcopy(module.dictionary).to(device), device)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        manifest = Manifest(run / "manifest.json", config)
        loggers = build_loggers(config, run, 0)
        trainer = build_trainer(config, run, data, manifest, loggers)
        alternating = Alternating(step, given.segment, given.rounds)
        trainer.callbacks.insert(0, alternating)  # pyright: ignore[reportAttributeAccessIssue]
        profiler = SimpleProfiler()
        trainer.profiler = profiler  # pyright: ignore[reportAttributeAccessIssue]
        trainer.fit(module, datamodule=data)
    # the first pair is a warm-up of both
    laps = {name: taken[1:] for name, taken in alternating.seconds.items()}
    steps = trainer.global_step
    table = Table(
        f"Trainer.fit as train.py builds it, and the bare step ({given.segment} steps a turn)",
        ["", "ms a step", "÷ bare loop", "vectors/s"],
    )
    for name, taken in laps.items():
        per_step = spread([1000 * s / given.segment for s in taken]) if taken else None
        over = ratios(taken, laps["bare loop"]) if taken else None
        rate = spread([given.segment * data.batch_size / s for s in taken]) if taken else None
        table.rows.append([name, per_step, over, rate])
    waited: list[Any] = [
        "waited for batches, of Trainer.fit", 1000 * data.waited / steps, None, None
    ]  # fmt: skip
    table.rows.append(waited)
    for seconds in alternating.validations[:1]:
        table.rows.append(["a validation (not part of a step)", 1000 * seconds, None, None])
    where = Table("Where the time of Trainer.fit goes", ["action", "calls a step", "ms a step"])
    actions = sorted(profiler.recorded_durations.items(), key=lambda item: -sum(item[1]))
    others = ("Alternating", "run_training_epoch")  # they hold the bare loop, too
    for name, durations in actions[: ACTIONS_SHOWN + len(others)]:
        if not any(part in name for part in others):
            where.rows.append([name, len(durations) / steps, 1000 * sum(durations) / steps])
    return [table, where], laps


def _plot(laps: dict[str, list[float]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = axes_of(figure)[0, 0]
    pairs = zip(laps["Trainer.fit"], laps["bare loop"], strict=True)
    axes.plot([fit / bare for fit, bare in pairs], "o-")
    axes.axhline(1.1, color=GREY, linestyle=":", label="10 % slower")
    axes.set_ylim(bottom=0.9)
    axes.set_xlabel("turn")
    axes.set_ylabel("Trainer.fit ÷ bare loop, seconds")
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
