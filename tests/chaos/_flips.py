"""Flipped and cut bytes in everything that is read back: told with the file's name, or as before.

Readers are called in this process, and a share of the damages meets whole programs: a run that goes
on, a run that begins on the damaged cache, an evaluation.
"""

import hashlib
import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _forks import Child, program
from _runs import LM, differences, facts
from _tally import Tally

FLIPS, PROGRAMS = 8, 6
"""A seed's: for each kind of file, and in all."""
UNFINISHED = ("topk", (*LM, "sae=topk", "k=4", "eval=[core,downstream]"))
LOG = logging.getLogger()


@dataclass(frozen=True)
class Target:
    """A kind of file that is read back.

    Attributes:
        name: For the table.
        files: Which; one is damaged at a time.
        read: What of them counts.
        around: Folder that is put back after each try.
    """

    name: str
    files: list[Path]
    read: Callable[[], object]
    around: Path


def harmed(rng: random.Random, whole: bytes) -> bytes:
    """One flipped bit, one other byte, or a cut."""
    if rng.random() < 0.2 or not whole:
        return whole[: rng.randrange(len(whole))] if whole else b"x"
    content = bytearray(whole)
    content[rng.randrange(len(whole))] ^= rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
    return bytes(content)


def judge(read: Callable[[], object], expected: object, file: Path) -> str | None:
    """What is wrong with how a reader takes damage; None: nothing."""
    from sae.failures import explained

    try:
        found = read()
    except Exception as error:
        told = explained(error)
        if told is None:
            return f"{file}: traceback: {type(error).__name__}: {error}"
        names = [file.name, file.parent.name, file.parent.parent.name]
        if not any(name in str(told) for name in names):
            return f"{file} is not named: {told}"
        return None if "\n" not in str(told).strip() else f"several lines: {told}"
    return None if found == expected else f"{file}: silent"


@contextmanager
def put_back(folder: Path) -> Iterator[None]:
    """The folder as it was, afterwards."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        yield
    finally:
        for path in [p for p in folder.rglob("*") if p.is_file() and p not in files]:
            path.unlink()
        for path, content in files.items():
            if not path.is_file() or path.read_bytes() != content:
                if path.is_dir():
                    shutil.rmtree(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """Every kind of file `FLIPS * share` times, `PROGRAMS * share` whole programs."""
    warnings.simplefilter("ignore")
    LOG.setLevel(logging.CRITICAL)
    os.environ["SAE_CACHE"] = str(folder / "cache")
    made = _made(folder, tally)
    if made is None:
        return
    finished, stopped = made
    _programs(rng, max(1, round(PROGRAMS * share)), tally, folder, finished, stopped)
    from _readers import targets

    for target in targets(folder, finished, stopped):
        expected = target.read()
        for _ in range(max(1, round(FLIPS * share))):
            file = rng.choice(target.files)
            with put_back(target.around):
                file.write_bytes(harmed(rng, file.read_bytes()))
                tally.count(target.name, judge(target.read, expected, file))


def _made(folder: Path, tally: Tally) -> tuple[Path, Path] | None:
    """A finished run, and one that was told to stop."""
    from _kills import finish
    from _runs import Kind

    kind, cache = Kind(*UNFINISHED), folder / "cache"
    finished, stopped = folder / "finished", folder / "stopped"
    failure = finish(kind.start(finished, cache, folder / "finished.log"))
    failure = failure or _stopped(kind, stopped, cache, folder / "stopped.log")
    if failure:
        tally.count("undisturbed", failure)
        return None
    return finished, stopped


def _stopped(kind, run: Path, cache: Path, log: Path) -> str | None:
    """A run that a signal ended when it had two checkpoints."""
    import time

    (child,) = kind.start(run, cache, log)
    previous = run / "checkpoints" / "previous.ckpt"
    while not previous.exists() and child.wait(0) is None:
        time.sleep(0.01)
    child.send(15)
    if child.end() != 75:
        return f"exit {child.status} after SIGTERM: {child.last_line()}"
    return None


def _programs(
    rng: random.Random, tries: int, tally: Tally, folder: Path, finished: Path, stopped: Path
) -> None:
    """Whole programs on copies of run and cache, of which one file is damaged."""
    _, words = UNFINISHED
    expected = facts(finished)
    evaluated = _evaluation(finished)
    for i in range(tries):
        place = folder / f"program{i}"
        how = ("goes on", "begins", "evaluates", "ends")[i % 4]
        source = finished if how in ("evaluates", "ends") else stopped
        run = place / "run"
        shutil.copytree(folder / "cache", place / "cache")
        if how != "begins":
            shutil.copytree(source, run)
        candidates = [p for p in place.rglob("*") if p.is_file() and _is_read(p, how)]
        file = rng.choice(sorted(candidates))
        file.write_bytes(harmed(rng, file.read_bytes()))
        if how == "evaluates":
            call = program("evaluate", f"run={run}", "eval=[core,downstream]")
        else:
            call = program("train", *words, f"run_dir={run}")
        child = Child(call, place / "log", {"SAE_CACHE": str(place / "cache")})
        status, output = child.end(), child.output()
        where = f"{how}, {file.relative_to(place)}"
        failure = None
        if "Traceback" in output:
            failure = f"{where}: traceback: {child.last_line()}"
        elif status not in (0, 1):
            failure = f"{where}: exit {status}: {child.last_line()}"
        elif status == 1 and not any(n in child.last_line() for n in (file.name, file.parent.name)):
            failure = f"{where} is not named: {child.last_line()}"
        elif status == 0:
            found = _evaluation(run) if how == "evaluates" else differences(expected, facts(run))
            failure = (
                f"{where}: {found}"
                if found != (evaluated if how == "evaluates" else None)
                else None
            )
        tally.count(f"program {how}", failure)
        shutil.rmtree(place, ignore_errors=True)


def _is_read(file: Path, how: str) -> bool:
    unread = ("train.log", "evaluate.log", "report.html", ".lock", "error.txt")
    return file.name not in unread and ".hydra" not in file.parts and file.suffix != ".lock"


def _evaluation(run: Path) -> object:
    """Metrics of the SAE in a run, as results.json or evals/ hold them."""
    files = sorted((run / "evals").glob("*.json")) or [run / "results.json"]
    found: dict[str, object] = {}
    for file in files:
        content = json.loads(file.read_text())
        for name, result in (
            content if file.name == "results.json" else {content["eval"]: content}
        ).items():
            if isinstance(result, dict) and "metrics" in result:
                found[name] = result["metrics"]
    return found


def digest(*tensors) -> str:
    """Of the bytes of tensors."""
    import torch

    total = hashlib.sha256()
    for tensor in tensors:
        tensor = torch.as_tensor(tensor).contiguous()
        total.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        total.update(
            tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        )
    return total.hexdigest()
