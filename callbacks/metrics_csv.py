"""`metrics.csv`: every logged number, one row a step, readable while the run is still going.

Lightning's own CSVLogger deletes an existing file when it starts, so a resumed run would lose its
past. This one keeps it: the file of a run that was killed and resumed is equal, byte for byte, to
the file of a run that was not. For that reason nothing that depends on the clock is logged here.
"""

import csv
import io
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from sae.errors import ArtifactError
from sae.reading import FIRST, read_table
from sae.writing import naming, replacing

_DROPPED = ("step", "epoch")  # Lightning adds `epoch` to everything; training is one epoch here


class MetricsCSV(Logger):
    """Write metrics to a wide table: columns `step, tokens`, then in order of first appearance.

    Every call reaches the file before it returns: a new step appends a line, more numbers for the
    newest step rewrite that line in place, and only a new column rewrites the whole file (a
    temporary file, then a rename).

    Args:
        path: The file. Its folder is made.
        resume_step: None for a new run. When a run continues from a checkpoint: the checkpoint's
            `global_step`; rows with a later step are dropped, and so are columns that hold
            nothing without them. 0 starts a run over that had no checkpoint yet.
        checksum: Checksum of the file when the checkpoint was made; None if unknown.

    Raises:
        ArtifactError: If the file exists and `resume_step` is None, if it is not such a table, or
            if it differs from the one that `checksum` is of.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> table = MetricsCSV(folder / "metrics.csv")
        >>> table.log_metrics({"train/loss": 0.5, "tokens": 1024.0}, step=1)
        >>> table.log_metrics({"val/fvu": 0.25, "tokens": 1024.0}, step=1)
        >>> table.path.read_text().split()
        ['step,tokens,train/loss,val/fvu', '1,1024,0.5,0.25']
    """

    def __init__(
        self, path: str | Path, resume_step: int | None = None, checksum: int | None = None
    ):
        super().__init__()
        self.path = Path(path)
        self._columns = list(FIRST)
        self._rows: dict[int, dict[str, str]] = {}
        self._tail = 0  # byte at which the newest row's line starts
        self._start(resume_step, checksum)

    @property
    def name(self) -> str:
        """Empty name, so that Lightning adds no folder to default paths."""
        return ""

    @property
    def version(self) -> str:
        """Empty version, so that Lightning adds no folder to default paths."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the file."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Merge numbers into the row of `step` (Lightning always gives one)."""
        new = {
            name: _cell(name, value)
            for name, value in metrics.items()
            if value is not None and name not in _DROPPED
        }
        if not new:
            return
        step = 0 if step is None else step
        newest = next(reversed(self._rows), None)
        self._rows.setdefault(step, {"step": str(step)}).update(new)
        columns = [name for name in new if name not in self._columns]
        self._columns += columns
        if columns or newest is None or step < newest:
            self._rewrite()
        else:
            self._write_newest_line(appended=step > newest)

    @rank_zero_only
    def _start(self, resume_step: int | None, checksum: int | None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        if resume_step is None:
            raise ArtifactError(
                f"{self.path} exists already. Choose another folder, or pass resume_step= "
                "(the step of the checkpoint that training continues from; 0: from the start)."
            )
        columns, rows = read_table(self.path)
        self._rows = {step: row for step, row in rows.items() if step <= resume_step}
        used = set(FIRST).union(*(row.keys() for row in self._rows.values()))
        self._columns = [name for name in columns if name in used]
        self._rows = dict(sorted(self._rows.items()))
        if checksum is not None and checksum != self.checksum:
            raise ArtifactError(
                f"{self.path} is damaged, or was changed by hand: up to step {resume_step} it "
                "differs from the file that the checkpoint belongs to. Restore it from a copy, or "
                "remove it: the curves then begin where training continues."
            )
        self._rewrite()

    @property
    def checksum(self) -> int:
        """CRC-32 of the table: a checkpoint keeps it, for the run that continues from there."""
        return zlib.crc32(b"".join(self._lines()))

    def _lines(self) -> list[bytes]:
        return [_line(self._columns), *(self._row_line(row) for row in self._rows.values())]

    def _rewrite(self) -> None:
        self._rows = dict(sorted(self._rows.items()))
        lines = self._lines()
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(lines))
        self._tail = sum(map(len, lines)) - (len(lines[-1]) if self._rows else 0)

    def _write_newest_line(self, *, appended: bool) -> None:
        line = self._row_line(self._rows[next(reversed(self._rows))])
        with naming(self.path), self.path.open("r+b") as file:
            if appended:
                self._tail = file.seek(0, os.SEEK_END)
            file.seek(self._tail)
            file.write(line)
            file.truncate()

    def _row_line(self, row: Mapping[str, str]) -> bytes:
        return _line([row.get(name, "") for name in self._columns])


def _cell(name: str, value: Any) -> str:
    """Text of a value: repr of the float, so that reading it back gives the same number."""
    number = float(value)
    whole = name == "tokens" and math.isfinite(number) and number.is_integer()
    return str(int(number)) if whole else repr(number)


def _line(cells: list[str]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue().encode()
