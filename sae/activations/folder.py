"""Activations that are yours already: a tensor in memory, or a folder of files."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.cache import DAMAGE
from sae.activations.counted import Counted, RowRule
from sae.activations.counted_rows import count_rows, counted_of
from sae.activations.files import Part, find_files, open_part, refuse_file
from sae.activations.ranges import LARGEST, check_norms
from sae.activations.rows import EvenRows, Rows
from sae.activations.stats import Stats, all_finite
from sae.cached import cached_json
from sae.errors import ConfigError, StoreError
from sae.provenance import cache_dir, content_key
from sae.types import Split


class OwnRows(EvenRows):
    """A range of the rows of some parts, taken one after the other: `Rows`."""

    def __init__(self, parts: Sequence[Part], start: int, stop: int):
        super().__init__(stop - start, parts[0].d_in, "measure your activations")
        self._parts, self._start = parts, start

    def find_stats(self) -> Stats:
        """Measure and check all rows.

        Raises:
            StoreError: If a value is not finite or too large; names the file and the row.
        """
        stats = self.measure()
        check_norms("your activations", stats)
        return stats

    def check(self, i: int, rows: Float[Tensor, "rows d_in"]) -> None:
        """Refuse values that are not finite, or whose squares float32 cannot hold."""
        if not all_finite(rows):
            self._refuse_row(i, ~torch.isfinite(rows), "holds NaN or infinite values")
        sizes = rows.abs()
        if float(largest := sizes.max()) > LARGEST / math.sqrt(self.d_in):
            what = f"holds {float(largest):.3g}, whose square float32 cannot hold,"
            self._refuse_row(i, sizes == largest, what)

    def read(self, i: int) -> Float[Tensor, "rows d_in"]:
        """Chunk `i`, in the dtype of its file.

        Raises:
            StoreError: If it cannot be read, or a value is not finite; names the file.
        """
        start, stop = (self._start + bound for bound in self.chunk_bounds(i))
        found, first = [], 0
        for part in self._parts:
            a, b = max(start - first, 0), min(stop - first, part.num_rows)
            if a < b:
                try:
                    found.append(part.read(a, b))
                except DAMAGE as error:
                    refuse_file(part.path, f"cannot be read ({error})", error)
            first += part.num_rows
        rows = torch.cat(found)
        if self.known is not None and not all_finite(rows):  # changed since they were measured
            self._refuse_row(i, ~torch.isfinite(rows), "holds NaN or infinite values")
        return rows

    def _refuse_row(self, i: int, wrong: Tensor, what: str) -> NoReturn:
        row = self._start + self.chunk_bounds(i)[0] + int(wrong.any(dim=1).nonzero()[0])
        for part in self._parts:
            if row < part.num_rows:
                refuse_file(part.path, f"{what} in row {row}")
            row -= part.num_rows
        raise AssertionError("the row lies in no part")


class TensorActivations:
    """A source of activations from one tensor, for small or synthetic data.

    Validation and test rows are the last ones: training rows first, then validation, then test.

    Args:
        x: The activations.
        val_fraction: Share of rows held out for validation.
        test_fraction: Share of rows held out for testing.
        max_norm: Rows whose norm is above so many medians do not count; None: all do.
    """

    def __init__(
        self,
        x: Float[Tensor, "rows d_in"],
        *,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        max_norm: float | None = 10.0,
    ):
        self.rule = RowRule("keep", max_norm)
        part = Part(Path("tensor"), x.shape[0], x.shape[1], lambda a, b: x[a:b])
        self._splits = _split([part], val_fraction, test_fraction)

    def prepare(self) -> None:
        """Measure and check all rows."""
        for rows in self._splits.values():
            assert rows.stats

    def split(self, name: Split) -> Rows:
        """The rows of one split that count."""
        return count_rows(_not_empty(self._splits, name), self.counted)

    @cached_property
    def counted(self) -> Counted:
        """Rows that count."""
        return counted_of(self._splits["train"], self.rule)

    def describe(self) -> dict[str, object]:
        """Provenance; the key follows from the statistics."""
        return {"key": _stats_key(self._splits, self.rule), "kind": "tensor"}


class FolderActivations:
    """A source of activations from files, each [rows d_in]: `.npy`, `.pt`, `.safetensors` or zarr.

    The rows of all files form one sequence, in the order of the file names. Validation and test
    rows are contiguous blocks at its end (training, validation, test), since neighbouring rows
    often come from one document. Statistics are computed in one pass and cached in the user
    cache by file names, sizes and times of change; nothing is written into your folder.

    Args:
        path: A folder of such files, one such file, or one zarr array.
        val_fraction: Share of rows held out for validation.
        test_fraction: Share of rows held out for testing.
        max_norm: Rows whose norm is above so many medians do not count; None: all do.
        norm_limits: The largest norm that counts, as an SAE's metadata have it.

    Raises:
        StoreError: If there is no file, or one is of another shape, width or dtype.
    """

    def __init__(
        self, path: str | Path, *, val_fraction: float = 0.05, test_fraction: float = 0.05,
        max_norm: float | None = 10.0, norm_limits: Mapping[str, float | None] | None = None,
    ):  # fmt: skip
        self.rule, self._norm_limits = RowRule("keep", max_norm), norm_limits
        self.path = Path(path).expanduser()
        self._files = find_files(self.path)
        parts = [open_part(file) for file in self._files]
        for part in parts:
            if part.d_in != parts[0].d_in:
                refuse_file(
                    part.path,
                    f"has rows of width {part.d_in}, but {parts[0].path.name} of {parts[0].d_in}",
                )
        self._measured = False
        self._fractions = {"val": val_fraction, "test": test_fraction}
        self._splits = _split(parts, val_fraction, test_fraction)

    @property
    def num_rows(self) -> dict[Split, int]:
        """Rows of each split; nothing is read or measured."""
        return {split: rows.num_rows for split, rows in self._splits.items()}

    @property
    def d_in(self) -> int:
        """Width of the rows."""
        return self._splits["train"].d_in

    def prepare(self) -> None:
        """Measure and check all rows, unless the cache knows these files.

        Raises:
            StoreError: If a value is not finite; names the file and the row.
        """
        if self._measured:
            return
        splits = self._splits.items()
        found = cached_json(
            self._statistics_file(), lambda: {split: rows.stats.to_json() for split, rows in splits}
        )
        for split, rows in splits:
            rows.known = Stats.from_json(found[split])
        self._measured = True

    def split(self, name: Split) -> Rows:
        """The rows of one split that count."""
        self.prepare()
        return count_rows(_not_empty(self._splits, name), self.counted, self._kept_in(name))

    @cached_property
    def counted(self) -> Counted:
        """Rows that count."""
        self.prepare()
        return counted_of(self._splits["train"], self.rule, self._norm_limits)

    def _kept_in(self, name: Split) -> Path:
        return self._statistics_file().with_suffix("") / name

    def describe(self) -> dict[str, object]:
        """Provenance; the key follows from the statistics, so a folder may be moved."""
        self.prepare()
        return {
            "key": _stats_key(self._splits, self.rule),
            "kind": "folder",
            "path": str(self.path.resolve()),  # found from any working directory
            "files": [file.name for file in self._files],
            "val_fraction": self._fractions["val"],
            "test_fraction": self._fractions["test"],
            "max_norm": self.rule.max_norm,
        }

    def _statistics_file(self) -> Path:
        files = [
            (str(file.relative_to(self.path.parent)), file.stat().st_size, file.stat().st_mtime_ns)
            for top in self._files
            for file in (sorted(top.rglob("*")) if top.is_dir() else [top])
            if file.is_file()
        ]
        key = content_key({"files": files, "fractions": self._fractions})
        return cache_dir() / "folders" / f"{key}.json"


def _split(
    parts: Sequence[Part], val_fraction: float, test_fraction: float
) -> dict[Split, OwnRows]:
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} leave no training "
            "rows, or are negative. Give shares of 0 or more whose sum is below 1."
        )
    total = sum(part.num_rows for part in parts)
    val, test = round(total * val_fraction), round(total * test_fraction)
    return {
        "train": OwnRows(parts, 0, total - val - test),
        "val": OwnRows(parts, total - val - test, total - test),
        "test": OwnRows(parts, total - test, total),
    }


def _not_empty(splits: Mapping[Split, OwnRows], name: Split) -> OwnRows:
    if not splits[name].num_rows:
        remedy = "Give more rows" if name == "train" else f"Give more rows or a {name}_fraction"
        raise StoreError(f"The {name} split of your activations has no rows. {remedy}.")
    return splits[name]


def _stats_key(splits: Mapping[Split, OwnRows], rule: RowRule) -> str:
    stats = {split: rows.stats.to_json() for split, rows in splits.items()}
    return content_key(stats | rule.identity())
