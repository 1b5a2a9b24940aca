"""Look at the records of latents in the cache and make room in it.

python -m sae.features list
python -m sae.features remove KEY --yes
python -m sae.features remove --all --yes
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.table import Table

from sae.cache_command import entries, run_command, size
from sae.errors import ArtifactError, StoreError
from sae.features.make import features_dir
from sae.features.records import FACTS, Records


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        "python -m sae.features", __doc__, "records", features_dir, _table, _find, _remove,
        arguments,
    )  # fmt: skip


def _table() -> Table:
    table = Table("key", "LM", "point", "text", "tokens", "latents", "size", "state")
    for folder in _find(None):
        known, state = ("?",) * 5, "complete"
        try:
            facts = Records(folder).facts
            known = (
                facts["lm"], facts["point"], facts["text"], f"{facts['tokens']:,}",
                f"{facts['d_sae']:,}",
            )  # fmt: skip
        except ArtifactError:
            state = "damaged" if (folder / FACTS).exists() else "incomplete"
        table.add_row(folder.name, *known, size(folder), state)
    return table


def _find(entry: str | None) -> list[Path]:
    return entries(features_dir(), entry, "records")


def _remove(folder: Path) -> None:
    lock = FileLock(f"{folder}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            f"{folder.name} is being made by another process. Wait for it or stop it first."
        ) from None
    with lock:
        doomed = folder.with_name(f".removed-{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)  # out of sight in one step, so that nobody meets half of them
        shutil.rmtree(doomed)


if __name__ == "__main__":
    sys.exit(main())
