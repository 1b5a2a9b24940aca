"""Real small disks: full, without inodes, read-only. One line with a path, no litter, and the end.

Needs root, for file systems of its own that nobody else sees.
"""

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from _forks import Child, program
from _kills import finish, undisturbed
from _runs import KINDS, Kind, differences, facts
from _tally import Tally

TRIES = 6
"""A seed's."""
NEW_NAMESPACE = 0x00020000
ROOM = "512m"
_KINDS = ("LM and harvest", "topk, resampling", "fitted: pca", "harvest", "ensemble")


class Unable(RuntimeError):
    """No disks can be made here."""


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """`TRIES * share` runs on a disk that refuses something, then the same with room."""
    _own_namespace()
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(max(1, round(TRIES * share))):
        name = rng.choice(_KINDS)
        kind = next(k for k in KINDS if k.name == name)
        what = rng.choice(["size", "size", "nr_inodes", "read-only"])
        where = rng.choice(["cache", "run"])
        try:
            expected, _ = undisturbed(kind, folder.parent)
        except RuntimeError as error:
            tally.count(what, str(error))
            continue
        place = folder / str(number)
        failure = _one(rng, kind, what, where, place, folder.parent / "undisturbed", expected)
        tally.count(f"{what}, {where}", failure and f"{kind.name}: {failure} ({place})")


def _own_namespace() -> None:
    """Mounts from here on are this process's alone."""
    if os.geteuid() != 0:
        raise Unable(
            "Full and read-only disks need root: run this attack as root, or leave it out."
        )
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NAMESPACE) != 0:
        raise Unable(f"No namespace for mounts: {os.strerror(ctypes.get_errno())}.")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def _one(
    rng: random.Random, kind: Kind, what: str, where: str, place: Path, made: Path, expected: dict
) -> str | None:
    disk = place / "disk"
    disk.mkdir(parents=True)
    whole = made / kind.name.replace(" ", "_").replace(",", "") / where
    files = [p for p in whole.rglob("*") if p.is_file()]
    if what == "size":
        pages = sum(-(-p.stat().st_size // 4096) for p in files)
        option = f"size={max(1, int(pages * rng.uniform(0.05, 0.95))) * 4096}"
    elif what == "nr_inodes":
        entries = len(list(whole.rglob("*")))
        option = f"size={ROOM},nr_inodes={2 + int(entries * rng.uniform(0.05, 0.95))}"
    else:
        option = f"size={ROOM}"
    run, cache = (disk if where == name else place / name for name in ("run", "cache"))
    if where == "run":
        run = disk / "run"  # a folder on the disk, which programs may remove
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "chaos", str(disk)], check=True)
    try:
        if what == "read-only":
            if rng.random() < 0.5 and kind.name == "LM and harvest":  # something is there already
                finish(kind.start(run, cache, place / "before.log"))
                shutil.rmtree(run / "sae", ignore_errors=True)
                (run / "results.json").unlink(missing_ok=True)
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        refused = Child(_program(kind, run), place / "refused.log", {"SAE_CACHE": str(cache)})
        failure = _judged(refused, disk)
        room = f"remount,rw,size={ROOM},nr_inodes=0"
        subprocess.run(["mount", "-o", room, str(disk)], check=True)
        failure = failure or _litter(disk)
        again = Child(_program(kind, run), place / "again.log", {"SAE_CACHE": str(cache)})
        failure = failure or (finish([again]) and f"with room: {again.last_line()}")
        return failure or differences(expected, facts(run, cache))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def _program(kind: Kind, run: Path) -> Callable[[], None]:
    words = (
        ["-m", *kind.words, f"sweep_dir={run}"] if kind.sweep else [*kind.words, f"run_dir={run}"]
    )
    return program("train", *words)


def _judged(child: Child, disk: Path) -> str | None:
    """A refusal is status 1 with a line that names a path on the disk; status 0 needed no more."""
    status, output = child.end(), child.output()
    if "Traceback" in output:
        return f"traceback: {child.last_line()}"
    if status not in (0, 1):
        return f"exit {status}: {child.last_line()}"
    if status == 1 and str(disk) not in output:
        return f"no path: {child.last_line()}"
    return None


def _litter(disk: Path) -> str | None:
    left = [str(p) for p in disk.rglob("*") if p.name.endswith((".tmp", ".new"))]
    return f"left {left[:3]}" if left else None
