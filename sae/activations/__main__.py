"""Look at the cache of activations and make room in it.

python -m sae.activations list
python -m sae.activations remove KEY KEY/resid.4 --yes
python -m sae.activations remove --all --yes
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sae.activations.cache import store_lock, stores_dir
from sae.activations.store import ActivationStore
from sae.cache_command import run_command, size
from sae.errors import SAEError, StoreError

_COLUMNS = ("key", "LM", "corpus", "split", "tokens", "ctx", "points", "dtype", "size", "state")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_command(
        "python -m sae.activations", __doc__, "stores, or single points of them", stores_dir,
        _table, _find, _remove, arguments,
    )  # fmt: skip


def _table() -> Table:
    table = Table(*_COLUMNS)
    for folder in _stores():
        table.add_row(folder.name, *_describe(folder), size(folder), _state(folder))
    return table


def _stores() -> list[Path]:
    return sorted(path for path in stores_dir().glob("[!.]*") if path.is_dir())


def _describe(folder: Path) -> tuple[str, ...]:
    try:
        store = ActivationStore.open(folder)
        spec, names = store.spec, store.metadata["names"]
        points = ", ".join(map(str, store.points())) or "-"
        return (
            names["lm"], names["corpus"], spec.split, f"{spec.tokens:,}", str(spec.ctx), points,
            spec.dtype,
        )  # fmt: skip
    except SAEError:
        return ("?",) * 7


def _state(folder: Path) -> str:
    """State, as far as it shows without reading the arrays."""
    try:
        with store_lock(folder, wait=False):
            pass
    except StoreError:
        return "locked: a process is harvesting"
    if not (folder / "metadata.json").exists():
        return "incomplete: a harvest was killed"
    try:
        ActivationStore.open(folder)
    except StoreError:
        return "damaged: remove it"
    started = ", ".join(path.name for path in sorted(folder.glob("partial/*")))
    return f"incomplete: {started}" if started else "complete"


def _remove(path: Path) -> None:
    store = path if path.parent == stores_dir() else path.parent.parent
    with store_lock(store, wait=False):
        # Out of sight in one step, so that no process meets half a store or half an array.
        doomed = stores_dir() / f".removed-{store.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def _find(entry: str | None) -> list[Path]:
    """The store, or the point of one, that `KEY` or `KEY/POINT` names; of None all stores."""
    if entry is None:
        return _stores()
    key, _, point = entry.partition("/")
    store = next((path for path in _stores() if path.name == key), None)
    if store is None:
        known = ", ".join(path.name for path in _stores()) or "none, the cache is empty"
        raise StoreError(f"{key!r} is not the key of a store. Choose one of: {known}.")
    if not point:
        return [store]
    path = next((path for path in store.glob("activations/*") if path.name == point), None)
    if path is None:
        known = ", ".join(sorted(path.name for path in store.glob("activations/*.*"))) or "nothing"
        raise StoreError(f"{key} has no {point!r}; it holds {known}. Choose one of these.")
    return [path]


if __name__ == "__main__":
    sys.exit(main())
