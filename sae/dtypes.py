"""Which dtype a machine multiplies fast: what `lm.dtype=auto` and `trainer.precision=auto` become.

Measured, because no flag of a vendor tells: a CPU may have bfloat16 instructions and be no faster
with them, and one without them emulates it up to 100 times slower.
"""

import os
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import platformdirs
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.functional import linear

from sae.checksums import read_unsealed, seal
from sae.provenance import content_key, cpu_features, cpu_model, write_json

Kind = Literal["lm", "sae"]
Clock = Callable[[Tensor, Tensor, str], float]
SHAPES: dict[Kind, tuple[int, int, int]] = {"lm": (256, 576, 1536), "sae": (256, 576, 4608)}
"""Rows, inputs and outputs of the largest products of a small LM, and of an SAE's encoder."""
FASTER = 1.3
"""Factor by which bfloat16 must be faster: nearer to a tie the verdict would be chance."""
INHERITED = "SAE_AUTO"
"""Environment variable with the first process's verdicts, for the jobs and ranks it starts."""

_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
_SMALL = (32, 768)
"""Rows and outputs of the first try."""
_HOPELESS = 4
_ROUNDS = 5
_made: dict[Kind, str] = {}


def fast_dtype(kind: Kind, device: str) -> str:
    """`"bfloat16"` where it is at least `FASTER` times as fast as float32, else `"float32"`.

    A process that another one started answers what that one found (`hand_down`).

    Args:
        kind: Whose products: an LM's weights are stored in the dtype, an SAE's are cast to it.
        device: `"cpu"`, where it is measured once and remembered, or `"cuda"`, which is asked.
    """
    inherited = dict(word.split("=") for word in os.environ.get(INHERITED, "").split())
    if kind in inherited:
        return inherited[kind]
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = speedup(kind, "bfloat16") >= FASTER
    _made[kind] = "bfloat16" if fast else "float32"
    return _made[kind]


def hand_down() -> None:
    """Let processes started from here on take over what was found here."""
    if _made:
        os.environ[INHERITED] = " ".join(f"{kind}={dtype}" for kind, dtype in _made.items())


def resolve_lm(lm: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A configuration as conf/lm/*.yaml has it, with the dtype that `auto` stands for."""
    auto = lm.get("dtype") == "auto"
    return {**lm, "dtype": fast_dtype("lm", device)} if auto else dict(lm)


@cache
def speedup(kind: Kind, dtype: str) -> float:
    """Time of this CPU's float32 products over that of the same products in `dtype`.

    Measured in less than a second, once for a CPU, number of threads and torch: the result is kept
    in the user's own cache folder, since several machines may share `$SAE_CACHE`. A file that
    cannot be read is measured anew, one that cannot be written is done without.
    """
    identity = {
        "cpu": cpu_model(), "features": cpu_features(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "isa": {name: os.environ.get(name) for name in _ISA},
        "dtype": dtype, "kind": kind, "shape": list(SHAPES[kind]),
    }  # fmt: skip
    folder = _folder()
    if folder is None:
        return measure(kind, dtype)
    file = folder / f"{content_key(identity)}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # ranks that start together agree, and measure undisturbed
            known = _read(file)
            if known is None:
                known = measure(kind, dtype)
                write_json(file, seal({**identity, "speedup": known}))
            return known
    except OSError:
        return measure(kind, dtype)


def measure(kind: Kind, dtype: str, seconds: Clock | None = None) -> float:
    """Measure `speedup`: the fastest of several rounds, both dtypes in turn.

    A dtype that is hopeless in a small product is not tried in the large one: emulated, that would
    take seconds.

    Args:
        kind: Whose products.
        dtype: `"bfloat16"` or `"float16"`.
        seconds: Stands for the clock: time of `x @ W.T` in a dtype; an SAE's cast is included.
    """
    seconds = seconds or (_seconds_with_cast if kind == "sae" else _seconds)
    rows, inner, outputs = SHAPES[kind]
    with torch.random.fork_rng(devices=[]):
        x, W = torch.randn(rows, inner), torch.randn(outputs, inner)
    ratio = _ratio(x[: _SMALL[0]], W[: _SMALL[1]], dtype, 2, seconds)
    return ratio if ratio < 1 / _HOPELESS else _ratio(x, W, dtype, _ROUNDS, seconds)


def _ratio(x: Tensor, W: Tensor, dtype: str, rounds: int, seconds: Clock) -> float:
    names = ["float32", dtype] * rounds  # in turn: a neighbour's load meets both
    times = [(name, seconds(x, W, name)) for name in names]
    best = {name: min(taken for word, taken in times if word == name) for name in names}
    return best["float32"] / best[dtype]


@torch.no_grad()
def _seconds(x: Tensor, W: Tensor, dtype: str) -> float:
    x, W = x.to(getattr(torch, dtype)), W.to(getattr(torch, dtype))
    start = time.perf_counter()
    linear(x, W)
    return time.perf_counter() - start


@torch.no_grad()
def _seconds_with_cast(x: Tensor, W: Tensor, dtype: str) -> float:
    start = time.perf_counter()
    linear(x.to(getattr(torch, dtype)), W.to(getattr(torch, dtype)))
    return time.perf_counter() - start


def _folder() -> Path | None:
    try:
        return Path(platformdirs.user_cache_dir("lightning-sae")).expanduser() / "speed"
    except (RuntimeError, KeyError):  # a user whom the system does not know, without HOME
        return None


def _read(file: Path) -> float | None:
    try:
        return float(read_unsealed(file)["speedup"])
    except (ValueError, KeyError, TypeError, OverflowError):  # measured again
        return None
