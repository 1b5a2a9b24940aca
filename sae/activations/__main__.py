"""Look at the cache of activations and make room in it.

python -m sae.activations list
python -m sae.activations remove KEY KEY/resid.4 --yes
python -m sae.activations remove --all --yes
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sae.activations.cache import store_lock, stores_dir
from sae.activations.store import ActivationStore
from sae.errors import ConfigError, SAEError, StoreError

_COLUMNS = ("key", "LM", "corpus", "split", "tokens", "ctx", "points", "dtype", "size", "state")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m sae.activations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show every store with its contents and size")
    remove = commands.add_parser("remove", help="delete stores, or single points of them")
    remove.add_argument("entries", nargs="*", metavar="KEY[/POINT]", help="what to delete")
    remove.add_argument("--all", action="store_true", help="delete every store")
    remove.add_argument("--yes", action="store_true", help="delete; without it only say what")
    given = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    try:
        if given.command == "list":
            console.print(_table())
            console.print(f"{_size(stores_dir())} in {stores_dir()}", soft_wrap=True)
        else:
            for line in _remove(given.entries, given.all, given.yes):
                console.print(line, soft_wrap=True)
    except SAEError as error:
        Console(stderr=True, highlight=False).print(
            f"{type(error).__name__}: {error}", soft_wrap=True, markup=False
        )
        return 1
    return 0


def _table() -> Table:
    table = Table(*_COLUMNS)
    for folder in _stores():
        table.add_row(folder.name, *_describe(folder), _size(folder), _state(folder))
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
    """What can be said without reading the arrays."""
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


def _size(folder: Path) -> str:
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e3:,.0f} kB"


def _remove(entries: Sequence[str], everything: bool, yes: bool) -> list[str]:
    if everything == bool(entries):
        raise ConfigError("Say what to remove: keys, or --all, but not both.")
    paths = _stores() if everything else [_find(entry) for entry in entries]
    if not yes:
        listed = [f"would remove {path} ({_size(path)})" for path in paths]
        return [*listed, "Nothing was removed. Add --yes to remove."]
    lines = []
    for path in paths:
        lines.append(f"removed {path} ({_size(path)})")
        store = path if path.parent == stores_dir() else path.parent.parent
        with store_lock(store, wait=False):
            # Out of sight in one step, so that no process meets half a store or half an array.
            doomed = stores_dir() / f".removed-{store.name}"
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            shutil.rmtree(doomed)
    return lines


def _find(entry: str) -> Path:
    key, _, point = entry.partition("/")
    store = next((path for path in _stores() if path.name == key), None)
    if store is None:
        known = ", ".join(path.name for path in _stores()) or "none, the cache is empty"
        raise StoreError(f"{key!r} is no key of a store. Keys: {known}.")
    if not point:
        return store
    path = next((path for path in store.glob("activations/*") if path.name == point), None)
    if path is None:
        known = ", ".join(sorted(path.name for path in store.glob("activations/*.*"))) or "nothing"
        raise StoreError(f"{key} has no {point!r}; it holds {known}.")
    return path


if __name__ == "__main__":
    sys.exit(main())
