"""Odd command lines and files, by the property tests' strategies: one line, nothing written."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import test_edges as edges
from _forks import Child, program
from _tally import Tally
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

LINES, FILES, PROGRAMS = 80, 3, 6
"""A seed's: command lines, damages of each kind of file, command lines of whole programs."""


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """`LINES * share` command lines, `FILES * share` for each reader, both in this process."""
    import warnings

    warnings.simplefilter("ignore")
    here = folder / "here"
    here.mkdir(parents=True)
    os.chdir(here)
    os.environ["SAE_CACHE"] = str(folder / "cache")

    def line(program: str, words: list[str]) -> None:
        before = edges.files_in(here)
        failure = _judged(
            lambda: edges.told(lambda: edges.check_command_line(program, words), [""])
        )
        if failure is None and edges.files_in(here) != before:
            failure = "something was written"
        tally.count(f"{program}.py, in process", failure and f"{failure}: {words}")

    _draw(
        rng,
        LINES * share,
        line,
        st.sampled_from(["train", "train", "evaluate"]),
        st.lists(edges.words, max_size=3),
    )

    for kind in edges.READERS:
        _draw(
            rng,
            max(1, FILES * share),
            partial(_damaged, tally, here / "files", kind),
            edges.damages,
        )
    shutil.rmtree(here / "files", ignore_errors=True)
    _programs(rng, max(1, round(PROGRAMS * share)), tally, folder)


def _damaged(tally: Tally, place: Path, kind: Callable, how: object) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    file, read = kind(place)
    read()
    edges.damage(file, how)
    before = set(edges.files_in(place))
    names = [file.stem, file.parent.name, "lm.", "corpus.", "sae.", "activations."]
    failure = _judged(lambda: edges.told(read, names))
    made = set(edges.files_in(place)) - before - {str(file)}
    failure = failure or (f"left {made}" if made else None)
    tally.count(f"file: {kind.__name__}", failure and f"{failure}: {how!r:.80}")


def _judged(call: Callable[[], object]) -> str | None:
    """What is wrong, None: nothing."""
    try:
        call()
    except edges.Hangs:
        return "hangs"
    except AssertionError as error:
        return f"not one line with a name: {error}"
    except Exception as error:
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return None


def _draw(rng: random.Random, count: float, function: Callable[..., None], *strategies) -> None:
    """Call a function with `count` drawn arguments; it judges for itself and never raises."""
    options = settings(
        max_examples=max(1, round(count)), deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def once(arguments: tuple) -> None:
        function(*arguments)

    seed(rng.randrange(2**32))(options(given(st.tuples(*strategies))(once)))()


def _programs(rng: random.Random, tries: int, tally: Tally, folder: Path) -> None:
    """Whole programs: exit status 1, one line, no folder made; or a run that was asked for."""
    made: list[list[str]] = []
    _draw(
        rng,
        40 * tries,
        lambda words: made.append(words),
        st.lists(edges.words, min_size=1, max_size=3),
    )
    refused = [words for words in made if _is_refused(words)][:tries]
    for i, words in enumerate(refused):
        place = folder / f"program{i}"
        place.mkdir()
        call = program("train", *words)

        def there(call=call, place=place) -> None:
            os.chdir(place)
            call()

        child = Child(there, folder / f"program{i}.log", {"SAE_CACHE": str(place / "cache")})
        status, output = child.end(), child.output()
        failure = None
        if status != 1 or "Traceback" in output or len(output.strip().split("\n")) != 1:
            failure = f"exit {status}, {len(output.splitlines())} lines: {child.last_line()}"
        elif any(place.iterdir()):
            failure = "something was written"
        tally.count("train.py, whole", failure and f"{failure}: {words}")


def _is_refused(words: list[str]) -> bool:
    from sae.errors import SAEError

    if any("\x00" in word for word in words):  # no shell can give it
        return False
    try:
        edges.check_command_line("train", words)
    except SAEError:
        return True
    except Exception:
        return False
    return False
