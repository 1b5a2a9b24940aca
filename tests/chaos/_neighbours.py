"""Two processes at the same time in one run folder, one sweep, one cache, one second."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from _forks import Child, program
from _kills import undisturbed
from _runs import KINDS, WORLD, Kind, differences, facts
from _tally import Tally

TRIES = 4
"""A seed's."""


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """`TRIES * share` pairs."""
    names = list(WAYS)
    start = rng.randrange(len(names))
    for number in range(max(1, round(TRIES * share))):
        name = names[(start + number) % len(names)]
        place = folder / str(number)
        place.mkdir(parents=True)
        try:
            failure = WAYS[name](rng, place, folder.parent)
        except RuntimeError as error:
            failure = str(error)
        tally.count(name, failure and f"{failure} ({place})")


def _kind(name: str) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


def _pair(calls: list[Callable[[], None]], place: Path, rng: random.Random) -> list[Child]:
    """Both at the same time, or the second up to a second later."""
    children = []
    for i, call in enumerate(calls):
        children.append(Child(call, place / f"log{i}", {"SAE_CACHE": str(place / "cache")}))
        time.sleep(rng.choice([0, 0, rng.random()]))
    for child in children:
        child.end()
    return children


def _one_folder(rng: random.Random, place: Path, made: Path, name: str) -> str | None:
    """The second is refused, or comes when the first has finished."""
    kind = _kind(name)
    expected, _ = undisturbed(kind, made)
    run = place / "run"
    words = (
        ["-m", *kind.words, f"sweep_dir={run}"] if kind.sweep else [*kind.words, f"run_dir={run}"]
    )
    children = _pair([program("train", *words)] * 2, place, rng)
    codes = sorted(child.status or 0 for child in children)
    if codes not in ([0, 0], [0, 1]):
        return f"exits {codes}: {[child.last_line() for child in children]}"
    for child in children:
        if "Traceback" in child.output() or (
            child.status and "another process" not in child.output()
        ):
            return f"exit {child.status}: {child.last_line()}"
    return differences(expected, facts(run, place / "cache"))


def _one_cache(rng: random.Random, place: Path, made: Path) -> str | None:
    """Both want the same activations; in half of the tries one of them is killed."""
    kind = _kind("LM and harvest")
    expected, seconds = undisturbed(kind, made)
    cache = place / "cache"
    runs = [place / "run0", place / "run1"]
    children = [kind.start(run, cache, place / f"log{i}")[0] for i, run in enumerate(runs)]
    if rng.random() < 0.5 and children[0].wait(rng.uniform(0, 0.5) * seconds) is None:
        children[0].kill()
    codes = [child.end() for child in children]
    if codes[1] or codes[0] not in (0, -9):
        return f"exits {codes}: {[child.last_line() for child in children]}"
    whole = [run for run, code in zip(runs, codes, strict=True) if code == 0]
    return next((d for run in whole if (d := differences(expected, facts(run, cache)))), None)


def _one_second(rng: random.Random, place: Path, made: Path) -> str | None:
    """Without run_dir each run has a folder of its own."""

    def there() -> None:
        os.chdir(place)
        program("train", *WORLD, "sae=l1", "epochs=1")()

    children = _pair([there, there], place, rng)
    if any(child.status for child in children):
        return f"exits: {[child.last_line() for child in children]}"
    found = list((place / "outputs").rglob("results.json"))
    return None if len(found) == 2 else f"{len(found)} results"


WAYS: dict[str, Callable[[random.Random, Path, Path], str | None]] = {
    "one run folder": lambda rng, place, made: _one_folder(rng, place, made, "topk, resampling"),
    "one sweep folder": lambda rng, place, made: _one_folder(rng, place, made, "sweep"),
    "one cache": _one_cache,
    "one second": _one_second,
}
