"""One progress bar for all long work: count, rate and time left."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

log = logging.getLogger(__name__)
_LOG_EVERY_SECONDS = 30.0
_PACE_SECONDS, _ENOUGH_SECONDS, _STEADY = 3.0, 15.0, 0.25


class Estimate:
    """Time of a whole stage, told once: when the pace of a few seconds is that of the few before.

    The first batch allocates, loads and compiles: it is time spent, and tells no pace. Some of the
    next ones may compile as well. A pace that still changes is told after 15 seconds.

    Args:
        total: Units of the stage.
    """

    def __init__(self, total: int) -> None:
        self.total, self._start = total, time.monotonic()
        self._first: float | None = None
        self._mark = 0.0, 0
        self._pace = float("inf")
        self._told = False

    def after(self, count: int) -> float | None:
        """Seconds of the stage, the first time that they are known; else None.

        Args:
            count: Units that are finished now.
        """
        now = time.monotonic()
        if self._first is None:
            self._first, self._mark = now, (now, count)
        since, before = self._mark
        if self._told or count == before or now - since < _PACE_SECONDS:
            return None
        last, pace = self._pace, (now - since) / (count - before)
        self._mark, self._pace = (now, count), pace
        self._told = abs(last / pace - 1) < _STEADY or now - self._first >= _ENOUGH_SECONDS
        return now - self._start + (self.total - count) * pace if self._told else None


def duration(seconds: int | float) -> str:
    """A time in words.

    Example:
        >>> duration(41), duration(200), duration(9000)
        ('41 s', '3.3 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None else f"{_rate(speed)} {task.fields['unit']}/s", style="cyan"
        )


@contextmanager
def progress(
    description: str, total: int | None, unit: str = "tokens", done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Show a bar with rate and time left while the block runs; yield `advance(n)`.

    After the first batches a line says how long all will take. Where the output is no terminal (a
    log file, a cluster job) a line is logged twice a minute.

    Args:
        description: Name of the work, for example `"harvest"`.
        total: Number of units in all, or None when unknown (a spinner is shown).
        unit: Name of the counted things; `"bytes"` is shown as a download.
        done: Units that were finished before (resumed work); they do not count for the rate.
    """
    console = Console(stderr=True)
    counted = (
        [DownloadColumn(), TransferSpeedColumn()]
        if unit == "bytes"
        else [MofNCompleteColumn(), _RateColumn()]
    )
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *counted]
    bar = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task(description, total=total, completed=done, unit=unit)
    start = logged = time.monotonic()
    count = done
    estimate = None if total is None or unit in ("bytes", "%") else Estimate(total)

    def advance(n: int = 1) -> None:
        nonlocal count, logged
        count += n
        bar.advance(task, n)
        now = time.monotonic()
        whole = estimate and estimate.after(count)
        if whole:
            log.info("%s: %s %s, about %s", description, f"{total:,}", unit, duration(whole))
        finished = count == total  # the last line says so
        if not console.is_terminal and not finished and now - logged > _LOG_EVERY_SECONDS:
            logged = now
            log.info("%s", _line(description, count, done, total, unit, now - start))

    with bar:
        yield advance
    if not console.is_terminal:
        log.info("%s", _line(description, count, done, total, unit, time.monotonic() - start))


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"


def _line(
    description: str, count: int, done: int, total: int | None, unit: str, seconds: float
) -> str:
    rate = (count - done) / max(seconds, 1e-9)
    line = f"{description}: {count:,}" + (f" of {total:,}" if total else "")
    line += f" {unit}, {_rate(rate)} {unit}/s, {seconds:.0f} s"
    if total and rate > 0 and count < total:
        line += f", {(total - count) / rate:.0f} s left"
    return line
