"""Files of activations of any kind that can be read by ranges of rows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import safetensors
import torch
from torch import Tensor

from sae.activations.cache import DAMAGE
from sae.activations.chunks import open_foreign_zarr
from sae.errors import StoreError
from sae.intact import require_content, visible

_SUFFIXES = (".npy", ".pt", ".safetensors", ".zarr")
_KINDS = ", ".join(_SUFFIXES)
_ZARR = ("zarr.json", ".zarray")


@dataclass(frozen=True)
class Part:
    """One file: rows that can be read by range."""

    path: Path
    num_rows: int
    d_in: int
    read: Callable[[int, int], Tensor]


def find_files(path: Path) -> list[Path]:
    """The files of a folder in the order of their names; a single file is a list of one.

    Raises:
        StoreError: If there is none.
    """
    if not path.exists() and not path.is_symlink():
        raise StoreError(f"{path} does not exist. Give a folder of activations ({_KINDS}).")
    if not path.is_dir() or _is_zarr(path):
        return [path]
    found = sorted(
        file for file in visible(path.iterdir(), path) if file.suffix in _SUFFIXES or _is_zarr(file)
    )
    if not found:
        there = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
        raise StoreError(f"{path} holds no activations ({_KINDS}) but {there}.")
    return found


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in _ZARR)


def open_part(path: Path) -> Part:
    """Open one file, or one zarr array.

    Raises:
        StoreError: If it is damaged, or of another kind, shape or dtype than [rows d_in] floats.
    """
    described = [path / name for name in _ZARR if (path / name).exists()]
    for file in described or [path]:
        require_content(file, StoreError)
    opener = _open_zarr if path.is_dir() else _OPENERS.get(path.suffix)
    if opener is None:
        refuse_file(path, f"is of no known kind ({_KINDS})")
    try:
        array, read = opener(path)
        shape, dtype = tuple(array.shape), str(array.dtype).removeprefix("torch.")
    except StoreError:
        raise
    except UnpicklingError as error:  # torch.load: its message advises to load unsafely
        refuse_file(path, "holds more than a tensor, or is damaged", error)
    except (*DAMAGE, EOFError, safetensors.SafetensorError) as error:
        reason = str(error).partition("\n")[0]  # some of torch's list all of its backends
        refuse_file(path, f"cannot be read ({reason})", error)
    if len(shape) != 2 or not all(shape):
        refuse_file(path, f"has shape {list(shape)} instead of [rows d_in]")
    if dtype not in ("float16", "bfloat16", "float32", "float64"):
        refuse_file(path, f"has dtype {dtype} instead of a float of 16 to 64 bits")
    return Part(path, shape[0], shape[1], read)


def _open_npy(path: Path) -> tuple[Any, Callable]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not array.dtype.isnative:
        refuse_file(path, "has the byte order of another machine")
    return array, lambda a, b: torch.from_numpy(np.array(array[a:b]))


def _open_pt(path: Path) -> tuple[Any, Callable]:
    tensor = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(tensor, Tensor):
        refuse_file(path, f"holds a {type(tensor).__name__} instead of one tensor")
    return tensor, lambda a, b: tensor[a:b].detach()


def _open_safetensors(path: Path) -> tuple[Any, Callable]:
    with safetensors.safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1:
            refuse_file(path, f"holds {len(names)} tensors ({', '.join(names[:5])}) instead of one")
        tensor = file.get_tensor(names[0])  # mapped, not read
    return tensor, lambda a, b: tensor[a:b]


def _open_zarr(path: Path) -> tuple[Any, Callable]:
    array = open_foreign_zarr(path)
    return array, lambda a, b: torch.from_numpy(np.asarray(array[a:b]))


_OPENERS = {".npy": _open_npy, ".pt": _open_pt, ".safetensors": _open_safetensors}


def refuse_file(path: Path, what: str, error: Exception | None = None) -> NoReturn:
    """Raise a StoreError that names a file of the user's."""
    raise StoreError(f"{path} {what}. Repair it or take it out of the folder.") from error
