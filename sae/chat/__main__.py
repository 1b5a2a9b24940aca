"""Look at the replies of chat LMs in the cache and make room in it.

python -m sae.chat list
python -m sae.chat remove KEY --yes
python -m sae.chat remove --all --yes
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sae.cache_command import entries, run_command, size
from sae.chat.ledger import ABOUT, ledger_dir
from sae.errors import ArtifactError
from sae.reading import read_object


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        "python -m sae.chat", __doc__, "ledgers", ledger_dir, _table, _find, shutil.rmtree,
        arguments,
    )  # fmt: skip


def _table() -> Table:
    table = Table("key", "server", "model", "replies", "size")
    for folder in _find(None):
        try:
            about = read_object(folder / ABOUT)
        except ArtifactError:
            about = {}
        replies = sum(1 for file in folder.glob("*.json") if file.name != ABOUT)
        known = (str(about.get(name, "?")) for name in ("base_url", "model"))
        table.add_row(folder.name, *known, f"{replies:,}", size(folder))
    return table


def _find(entry: str | None) -> list[Path]:
    return entries(ledger_dir(), entry, "ledgers")


if __name__ == "__main__":
    sys.exit(main())
