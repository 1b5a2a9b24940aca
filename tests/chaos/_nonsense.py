"""Settings and values out of all range: never exit status 0 with nonsense and no word."""

import json
import math
import random
from pathlib import Path

import numpy as np
from _forks import Child
from _runs import WORLD, _plain
from _tally import Tally

TRIES = 6
"""A seed's."""
ARCHITECTURES = ("topk", "l1", "tied", "batch_topk", "jumprelu", "gated")
PENALISED = ("l1", "tied", "jumprelu", "gated")
SANE = 1.5
"""FVU of 1 is as good as the mean; what is so far above must not pass without a word."""


def attack(rng: random.Random, share: float, tally: Tally, folder: Path) -> None:
    """`TRIES * share` runs."""
    for number in range(max(1, round(TRIES * share))):
        place = folder / str(number)
        place.mkdir(parents=True)
        kind, words = _drawn(rng, place)
        try:
            call = _plain(words, place / "run")
        except Exception as error:  # refused before anything begins
            from sae.failures import explained

            tally.count(kind, None if explained(error) else f"{error!r}: {words}")
            continue
        child = Child(call, place / "log", {"SAE_CACHE": str(place / "cache")})
        status = child.end()
        tally.count(kind, _judged(status, child, place / "run", words))


def _judged(status: int, child: Child, run: Path, words: tuple[str, ...]) -> str | None:
    output = child.output()
    if status == 1:  # `_plain` prints a traceback, whose last line is the error
        named = ("DivergedError", "ConfigError", "StoreError", "SAEError")
        lines = [line for line in output.splitlines() if any(name in line for name in named)]
        return None if lines else f"{child.last_line()}: {words}"
    if status:
        return f"exit {status}: {child.last_line()}: {words}"
    metrics = json.loads((run / "results.json").read_text())["core"]["metrics"]
    fvu, l0 = (metrics[name]["value"] for name in ("fvu", "l0"))
    bad = fvu is not None and not (math.isfinite(fvu) and fvu <= SANE) or l0 == 0
    told = any(
        word in output for word in ("FVU", "L0 is 0", "dead", "max_norm", "float32", "diverge")
    )
    return f"exit 0 with FVU {fvu}, L0 {l0}, and no word: {words}" if bad and not told else None


def _drawn(rng: random.Random, place: Path) -> tuple[str, tuple[str, ...]]:
    """A kind of nonsense and its command line."""
    kind = rng.choice(["lr", "l1", "values", "settings"])
    architecture = rng.choice(PENALISED if kind == "l1" else ARCHITECTURES)
    words = [*WORLD, f"sae={architecture}"]
    words += [f"k={rng.choice([1, 2])}"] if "topk" in architecture else []
    power = rng.uniform(-40, 40)
    if kind == "lr":
        words.append(f"optimizer.lr={10 ** rng.uniform(-1, 30):.3g}")
    elif kind == "l1":
        words.append(f"l1={10 ** rng.uniform(1, 38):.3g}")
    elif kind == "settings":
        words.append(
            rng.choice([
                "optimizer.eps=1e30", "optimizer.beta2=0.9999999", "dict_ratio=1", "dict_ratio=200",
                "trainer.gradient_clip=1e-30", "trainer.gradient_clip=1e30",
                "optimizer.bias_rate=1e20", "optimizer.warmup_tokens=1e12",
                "activations.noise=1e10",
                "trainer.batch_size=1",
            ])
        )  # fmt: skip
        words.append(f"optimizer.lr={10 ** rng.uniform(-6, 3):.3g}")
    else:
        rows = np.random.default_rng(rng.randrange(2**32)).standard_normal((3000, 8))
        change = rng.choice(["scale", "row", "column", "shift", "constant", "nan"])
        if change == "scale":
            rows *= 10**power
        elif change == "row":
            rows[rng.randrange(3000)] *= 10 ** abs(power / 2)
        elif change == "column":
            rows[:, rng.randrange(8)] *= 10 ** (power / 2)
        elif change == "shift":
            rows += 10 ** abs(power / 2)
        elif change == "constant":
            rows[:] = 10 ** (power / 2)
        else:
            rows[rng.randrange(3000), 3] = rng.choice([np.nan, np.inf])
        with np.errstate(over="ignore"):
            np.save(place / "rows.npy", rows.astype("f4"))
        words = [w for w in words if not w.startswith(("activations", "tokens="))]
        words += ["activations=folder", f"activations.path={place / 'rows.npy'}"]
    return kind, tuple(words)
