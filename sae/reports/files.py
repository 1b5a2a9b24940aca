"""Read the files of a run folder that exist."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae import reading
from sae.checksums import check_folder, check_text
from sae.errors import ArtifactError
from sae.writing import replacing


def read_yaml(path: Path) -> Any:
    """Content of a YAML file; None when it does not exist.

    Raises:
        ArtifactError: If it exists but is not YAML, or is damaged.
    """
    if not os.path.lexists(path):
        return None
    check_text(path)
    return reading.read_yaml(path)


def read_metrics(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Curves of a `metrics.csv` by name: (tokens, values), or (step, values) without tokens.

    Raises:
        ArtifactError: If it is damaged.
    """
    if not os.path.lexists(path):
        return {}
    check_folder(path.parent, [path.name])
    rows = reading.read_table(path)[1].values()
    curves: dict[str, tuple[list[float], list[float]]] = {}
    try:
        for row in rows:
            position = float(row.get("tokens") or row["step"])
            for name, cell in row.items():
                if name not in reading.FIRST:
                    xs, ys = curves.setdefault(name, ([], []))
                    xs.append(position)
                    ys.append(float(cell))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}). Restore or remove it.") from None
    return curves


def table_bytes(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A csv with these columns; None becomes an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def write_bytes(path: Path, content: bytes) -> None:
    """Write so that a reader sees the old file or the new one, never half of one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
