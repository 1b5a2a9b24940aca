"""Command line to list and remove entries of a part of the cache."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sae.errors import ConfigError, SAEError, StoreError


def run_command(
    program: str,
    about: str | None,
    kept: str,
    folder: Callable[[], Path],
    table: Callable[[], Table],
    find: Callable[[str | None], list[Path]],
    remove: Callable[[Path], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run `list` or `remove`; return the exit status.

    Args:
        program: Name of the command.
        about: Printed by `--help`.
        kept: Name of the entries, in the plural.
        folder: Gives where it is kept.
        table: Makes the answer of `list`.
        find: Gives the path that an entry names; of None all of them.
        remove: Deletes what lies at a path.
        arguments: Default: those of the process.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=program, description=about, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help=f"show all {kept} with their contents and sizes")
    removing = commands.add_parser("remove", help=f"delete {kept}")
    removing.add_argument("entries", nargs="*", metavar="KEY", help="what to delete")
    removing.add_argument("--all", action="store_true", help=f"delete all {kept}")
    removing.add_argument("--yes", action="store_true", help="delete; without it only say what")
    given = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    try:
        if given.command == "list":
            console.print(table())
            console.print(f"{size(folder())} in {folder()}", soft_wrap=True)
            return 0
        if given.all == bool(given.entries):
            raise ConfigError("Say what to remove: keys, or --all, but not both.")
        names = [None] if given.all else given.entries
        paths = [path for name in names for path in find(name)]
        for path in paths:
            line = f"{path} ({size(path)})"
            if given.yes:
                remove(path)
            console.print(f"{'removed' if given.yes else 'would remove'} {line}", soft_wrap=True)
        if not given.yes:
            console.print("Nothing was removed. Add --yes to remove.")
    except SAEError as error:
        Console(stderr=True, highlight=False).print(
            f"{type(error).__name__}: {error}", soft_wrap=True, markup=False
        )
        return 1
    return 0


def entries(root: Path, entry: str | None, what: str) -> list[Path]:
    """Folders of a kind of the cache: the one of a key, or all of them without one.

    Raises:
        StoreError: If there is none of this key, with the keys that there are.
    """
    folders = sorted(path for path in root.glob("[!.]*") if path.is_dir())
    if entry is None:
        return folders
    found = [path for path in folders if path.name == entry]
    if not found:
        known = ", ".join(path.name for path in folders) or f"none, the cache has no {what}"
        raise StoreError(f"{entry!r} is not a key of {what}. Keys: {known}.")
    return found


def size(folder: Path) -> str:
    """Size of all files in a folder, for people."""
    num_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e3:,.0f} kB"
