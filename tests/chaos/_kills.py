"""SIGKILL at random times, then the same command again: the end is that of a run left alone."""

import random
import time
from pathlib import Path

from _forks import Child
from _runs import KINDS, Kind, differences, facts
from _tally import Tally
from filelock import FileLock

KILLS = 20
"""A seed's."""
PATIENCE = 30
"""Seconds that torchrun gives the other ranks. Who waits for a rank that died before they had met
would wait half an hour, torch's own time."""


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """Kill `KILLS * share` times; one run in three is killed more than once."""
    kinds = list(KINDS)
    rng.shuffle(kinds)
    chosen = kinds + rng.choices(kinds, [k.weight for k in kinds], k=200)
    done: dict[str, tuple[dict[str, object], float]] = {}
    kills = number = 0
    while kills < max(1, round(KILLS * share)):
        kind = chosen[number]
        number += 1
        if kind.weight < rng.random():
            continue
        if kind.name not in done:
            try:
                done[kind.name] = undisturbed(kind, folder.parent)
            except RuntimeError as error:
                tally.count(kind.name, str(error))
                kills += 1
                continue
        kills += _one(rng, kind, folder / f"{number}.{_file(kind)}", tally, *done[kind.name])


def _file(kind: Kind) -> str:
    return kind.name.replace(" ", "_").replace(",", "")


def undisturbed(kind: Kind, folder: Path) -> tuple[dict[str, object], float]:
    """What a run that is left alone gives, and its seconds; made once for all seeds.

    Raises:
        RuntimeError: If it fails.
    """
    place = folder / "undisturbed" / _file(kind)
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        if not (place / "seconds").exists():
            start = time.monotonic()
            if failure := finish(kind.start(place / "run", place / "cache", place / "log")):
                raise RuntimeError(f"undisturbed: {failure}")
            (place / "seconds").write_text(str(time.monotonic() - start))
        found = facts(place / "run", place / "cache")
        if not found:
            raise RuntimeError(f"undisturbed: {kind.name} left nothing to compare")
        return found, float((place / "seconds").read_text())


def _one(
    rng: random.Random,
    kind: Kind,
    folder: Path,
    tally: Tally,
    expected: dict[str, object],
    seconds: float,
) -> int:
    shared = folder.parent.parent / "undisturbed" / _file(kind) / "cache"
    run, cache = folder / "run", folder / "cache" if kind.own_cache else shared
    times, latest = [], seconds
    while not times or (rng.random() < 1 / 3 and len(times) < 3):
        at = rng.uniform(0.02, latest)
        children = kind.start(run, cache, folder / f"kill{len(times)}.log")
        victim = rng.choice(children)
        if victim.wait(at) is not None:  # ended before: earlier next time
            finish(children)
            if times:
                break
            latest = max(0.5 * latest, 0.05)
            _forget(run, cache if kind.own_cache else None)
            continue
        times.append(round(at, 2))
        if "joblib" in kind.name:
            if alive := victim.kill_alone():
                tally.count(kind.name, f"workers outlive their launcher: {alive}", len(times))
                return len(times)
        else:
            victim.kill()
        for other in children:  # ranks: where they do not see that one is gone, torchrun ends them
            if other.wait(PATIENCE) is None:
                other.kill()
    failure = finish(kind.start(run, cache, folder / "again.log"))
    failure = failure or differences(expected, facts(run, cache))
    where = f"killed after {times} of {seconds:.1f} s: {failure} ({folder})" if failure else None
    tally.count(kind.name, where, len(times))
    return len(times)


def finish(children: list[Child]) -> str | None:
    codes = [child.end() for child in children]
    if any(codes):
        worst = next(child for child, code in zip(children, codes, strict=True) if code)
        return f"exit {codes}: {worst.last_line()}"
    return None


def _forget(*folders: Path | None) -> None:
    import shutil

    for folder in folders:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
