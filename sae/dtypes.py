"""Dtypes that a machine multiplies fast: what `lm.dtype=auto` and `trainer.precision=auto` become.

Measured, because no flag of a vendor tells: a CPU may have bfloat16 instructions and be no faster
with them, and one without them emulates it up to 100 times slower. An int8 product that selects
(`trainer.kernels=auto`) pays for rounding x and W in every step: that it wins is measured as well.
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

from sae.cached import cached_json
from sae.kernels import int8
from sae.provenance import content_key, cpu_features, cpu_model

Kind = Literal["lm", "sae", "selection"]
Clock = Callable[[Tensor, Tensor, str], float]
SHAPES: dict[Kind, tuple[int, int, int]] = {
    "lm": (256, 576, 1536), "sae": (256, 576, 4608), "selection": (4096, 576, 4608),
}  # fmt: skip
"""Rows, inputs and outputs of the largest products of a small LM, and of an SAE's encoder; of a
selection at most so many rows."""
FASTER = 1.3
"""Factor by which the other dtype must be faster: nearer to a tie the verdict would be chance."""
INHERITED = "SAE_AUTO"
"""Environment variable with the first process's verdicts, for the jobs and ranks it starts."""

_ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
_SMALL = (32, 768)
"""Rows and outputs of the first try."""
_HOPELESS: dict[Kind, int] = {"lm": 4, "sae": 4, "selection": 50}
"""Factor by which the first try may be slower; a selection has a dozen calls around its product."""
_ROUNDS = 5
_made: dict[str, str] = {}


def fast_dtype(kind: Kind, device: str, rows: int | None = None) -> str:
    """The other dtype where it is at least `FASTER` times as fast as float32, else `"float32"`.

    The other one is bfloat16, of selections int8 (`sae.kernels.int8`). A process that another one
    started answers what that one found (`hand_down`).

    Args:
        kind: Whose products: an LM's weights are stored in the dtype, an SAE's are cast to it.
        device: `"cpu"`, where it is measured once and remembered, or `"cuda"`, which is asked.
        rows: For a product that only selects: vectors in a step, over which the rounding of the
            weights is shared.
    """
    if rows is not None:
        rows = min(rows, SHAPES[kind][0])
    word = kind if rows is None else f"{kind}/{rows}"
    inherited = dict(word.split("=") for word in os.environ.get(INHERITED, "").split())
    if word in inherited:
        return inherited[word]
    other = "int8" if kind == "selection" else "bfloat16"
    if device == "cuda":
        fast = other == "bfloat16" and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = speedup(kind, other, rows) >= FASTER
    _made[word] = other if fast else "float32"
    return _made[word]


def hand_down() -> None:
    """Let processes started from here on take over what was found here."""
    if _made:
        os.environ[INHERITED] = " ".join(f"{kind}={dtype}" for kind, dtype in _made.items())


def resolve_lm(lm: Mapping[str, Any], device: str) -> dict[str, Any]:
    """A configuration as conf/lm/*.yaml has it, with the dtype that `auto` stands for."""
    auto = lm.get("dtype") == "auto"
    return {**lm, "dtype": fast_dtype("lm", device)} if auto else dict(lm)


@cache
def speedup(kind: Kind, dtype: str, rows: int | None = None) -> float:
    """Time of this CPU's float32 products over that of the same products in `dtype`.

    Measured in a second or two, once for a CPU, number of threads and torch: the result is kept
    in the user's own cache folder, since several machines may share `$SAE_CACHE`. A file that
    cannot be read is measured anew, one that cannot be written is done without.
    """
    shape = _shape(kind, rows)
    identity = {
        "cpu": cpu_model(), "features": cpu_features(),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "isa": {name: os.environ.get(name) for name in _ISA},
        "dtype": dtype, "kind": kind, "shape": list(shape),
    }  # fmt: skip
    folder = _folder()
    if folder is None:
        return measure(kind, dtype, rows)
    file = folder / f"{content_key(identity)}.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock"):  # ranks that start together agree, and measure undisturbed
            made = cached_json(file, lambda: {**identity, "speedup": measure(kind, dtype, rows)})
            return float(made["speedup"])
    except OSError:
        return measure(kind, dtype, rows)


def measure(kind: Kind, dtype: str, rows: int | None = None, seconds: Clock | None = None) -> float:
    """Measure `speedup`: the fastest of several rounds, both dtypes in turn.

    A dtype that is hopeless in a small product is not tried in the large one: emulated, that would
    take seconds.

    Args:
        kind: Whose products.
        dtype: `"bfloat16"` or `"float16"`, of a selection `"int8"`.
        rows: Fewer than are in `SHAPES`, where that is another number in every run.
        seconds: Stands for the clock: time of `x @ W.T` in a dtype; an SAE's cast is included.
    """
    if dtype == "int8" and not int8.available():
        return 0.0
    seconds = seconds or _CLOCKS[kind]
    num_rows, inner, outputs = _shape(kind, rows)
    with torch.random.fork_rng(devices=[]):
        x, W = torch.randn(num_rows, inner), torch.randn(outputs, inner)
    ratio = _ratio(x[: _SMALL[0]], W[: _SMALL[1]], dtype, 2, seconds)
    return ratio if ratio < 1 / _HOPELESS[kind] else _ratio(x, W, dtype, _ROUNDS, seconds)


def _shape(kind: Kind, rows: int | None) -> tuple[int, int, int]:
    most, inner, outputs = SHAPES[kind]
    return (most if rows is None else min(rows, most)), inner, outputs


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


@torch.no_grad()
def _seconds_of_selection(x: Tensor, W: Tensor, dtype: str) -> float:
    bias = x.new_zeros(len(W))
    product = linear if dtype == "float32" else int8.upper_bounds
    start = time.perf_counter()
    product(x, W, bias)
    return time.perf_counter() - start


_CLOCKS: dict[Kind, Clock] = {
    "lm": _seconds, "sae": _seconds_with_cast, "selection": _seconds_of_selection,
}  # fmt: skip


def _folder() -> Path | None:
    try:
        return Path(platformdirs.user_cache_dir("lightning-sae")).expanduser() / "speed"
    except (RuntimeError, KeyError):  # a user whom the system does not know, without HOME
        return None
