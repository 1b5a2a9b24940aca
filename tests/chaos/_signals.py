"""SIGTERM, SIGUSR1 and Ctrl-C at random times: the exit status, and the end of a run left alone."""

import random
import signal
from pathlib import Path

from _kills import finish, undisturbed
from _runs import KINDS, differences, facts
from _tally import Tally

SIGNALS = 6
"""A seed's."""
STATUS = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """Signal `SIGNALS * share` runs."""
    kinds = [kind for kind in KINDS if kind.weight == 1 and kind.ranks == 1]
    for number in range(max(1, round(SIGNALS * share))):
        kind = rng.choice(kinds)
        sent = rng.choice(list(STATUS))
        try:
            expected, seconds = undisturbed(kind, folder.parent)
        except RuntimeError as error:
            tally.count(sent.name, str(error))
            continue
        place = folder / str(number)
        # with a cache of its own a run is as long as the one that was measured
        run, cache, latest = place / "run", place / "cache", seconds
        (child,) = kind.start(run, cache, place / "log")
        if child.wait(rng.uniform(0.3, 0.9) * latest) is None:
            child.send(sent)
        status = child.end()
        failure = None
        if status not in (0, STATUS[sent], -sent):  # -sent: before the program listens
            failure = f"exit {status}: {child.last_line()}"
        elif "Traceback" in child.output():
            failure = f"traceback: {child.last_line()}"
        failure = failure or finish(kind.start(run, cache, place / "again.log"))
        failure = failure or differences(expected, facts(run, cache))
        tally.count(sent.name, f"{kind.name}: {failure} ({place})" if failure else None)
