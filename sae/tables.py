"""Tables of results: a row per latent, prompt or pair; columns have a type and a unit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sae.writing import replacing

Type = Literal["string", "int64", "float64", "bool"]


class Column(NamedTuple):
    """A column of a table.

    Args:
        type: Type of its values, as Arrow calls it; None and NaN are missing values.
        unit: Unit of its values; empty for names, counts and shares.
        values: A value per row: a sequence or a NumPy array.
    """

    type: Type
    unit: str
    values: Any


@dataclass(frozen=True)
class Table:
    """Columns of equal length by name.

    Example:
        >>> table = Table({"latent": Column("int64", "", [0, 1]), "cosine": Column("float64", "",
        ...                [0.5, None])})
        >>> table.rows()
        [{'latent': 0, 'cosine': 0.5}, {'latent': 1, 'cosine': None}]
        >>> table.schema()["columns"]["cosine"]
        {'type': 'float64', 'unit': ''}
    """

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        assert len({len(column.values) for column in self.columns.values()}) == 1

    @classmethod
    def of(
        cls, types: Mapping[str, tuple[Type, str]], rows: Iterable[Mapping[str, Any]]
    ) -> "Table":
        """A table of rows.

        Args:
            types: Type and unit of each column.
            rows: Values by column; a missing one is None.
        """
        listed = list(rows)
        return cls({
            name: Column(kind, unit, [row.get(name) for row in listed])
            for name, (kind, unit) in types.items()
        })  # fmt: skip

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).values)

    def rows(self) -> list[dict[str, Any]]:
        """The rows, with None for what is missing."""
        return self._arrow().to_pylist()

    def to_pandas(self) -> Any:
        """A pandas DataFrame, for notebooks."""
        return self._arrow().to_pandas()

    def schema(self) -> dict[str, Any]:
        """Number of rows, and type and unit of each column; plain JSON values."""
        columns = {n: {"type": c.type, "unit": c.unit} for n, c in self.columns.items()}
        return {"rows": len(self), "columns": columns}

    def save(self, path: Path) -> None:
        """Write as Parquet; a reader sees the old file or the new one."""
        from pyarrow import parquet

        with replacing(path) as temporary:
            parquet.write_table(self._arrow(), temporary)

    def _arrow(self) -> Any:
        import pyarrow

        return pyarrow.table({
            name: pyarrow.array(column.values, getattr(pyarrow, column.type)(), from_pandas=True)
            if column.type != "bool"
            else pyarrow.array(column.values, pyarrow.bool_())
            for name, column in self.columns.items()
        })  # fmt: skip


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that `Table.save` wrote."""
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()
