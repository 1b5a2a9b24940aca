"""Read other libraries' files with clear errors and no foreign code; write a folder at once."""

import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.errors import ArtifactError
from sae.intact import follow_umask, require_content
from sae.writing import naming

log = logging.getLogger(__name__)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file."""
    try:
        return load_file(existing(file))
    except safetensors.SafetensorError as error:
        raise ArtifactError(
            f"{file} is not a safetensors file ({error}). Copy it again."
        ) from error


def write_safetensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors, readable for whom the umask allows; the library writes mode 0600."""
    with naming(file):
        save_file(dict(tensors), file)
    follow_umask(file)


def read_torch(file: Path, stand_ins: Sequence[tuple[Any, str]] = ()) -> Any:
    """Read a file of `torch.save` with PyTorch's restricted unpickler: none of its code runs.

    It builds tensors and plain containers, and nothing else but the stand-ins.

    Args:
        file: A `.pt` file.
        stand_ins: Harmless objects that take the place of those that the file names, each with
            that full name.

    Raises:
        ArtifactError: If the file asks for anything else, or is damaged.
    """
    existing(file)
    try:
        with torch.serialization.safe_globals(list(stand_ins)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()
        named = next((line for line in reason if "GLOBAL" in line or "reduce" in line), reason[0])
        raise ArtifactError(
            f"{file} cannot be read: {named.strip()[:200]} Either it is damaged, or it holds more "
            "than tensors and plain containers; nothing else is unpickled, since that would run "
            "the file's own code."
        ) from error


def state_of(content: Any, file: Path) -> dict[str, Any]:
    """The state dict that a `.pt` file must hold."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ArtifactError(f"{file} holds a {type(content).__name__}, not a state dict.")
    return dict(content)


def taken(state: Mapping[str, Any], names: Sequence[str], file: Path) -> list[Tensor]:
    """The tensors of these names.

    Raises:
        ArtifactError: If one is missing, or is not a tensor.
    """
    if missing := [name for name in names if not isinstance(state.get(name), Tensor)]:
        raise ArtifactError(
            f"{file} lacks {', '.join(missing)}; it holds {', '.join(sorted(state)) or 'nothing'}."
        )
    return [state[name] for name in names]


def reject_others(state: Mapping[str, Any], known: Collection[str], file: Path) -> None:
    """Refuse tensors that are not read: the library that wrote them may compute with them.

    Raises:
        ArtifactError: If there is a tensor of another name than the known ones.
    """
    others = [n for n, value in state.items() if isinstance(value, Tensor) and n not in known]
    if others:
        raise ArtifactError(
            f"{file} holds unknown tensors: {', '.join(sorted(others))} (known: "
            f"{', '.join(known)}). They may change codes or reconstructions, so the file is "
            "refused. Fold them into the known tensors first."
        )


def reject_flags(config: Mapping[str, Any], known: Collection[str], file: Path) -> None:
    """Refuse settings that are not read and are switched on.

    Raises:
        ArtifactError: If there is a setting of another name whose value is not false, 0 or null.
    """
    others = [name for name, value in config.items() if value and name not in known]
    if others:
        raise ArtifactError(
            f"{file}: {', '.join(f'{name}={config[name]!r}' for name in others)} is not known and "
            f"may change what the SAE computes, so the file is refused. Known: {', '.join(known)}."
        )


def warn_of_flags(config: Mapping[str, Any], known: Collection[str], file: Path) -> None:
    """Warn of settings that are switched on but not read, in a file that has many of training.

    Args:
        config: The settings.
        known: Settings that are read, or do not change what the SAE computes.
        file: File that they are in.
    """
    others = [name for name, value in config.items() if value and name not in known]
    if others:
        log.warning(
            "%s: %s is not known and was ignored. If it changes what the SAE computes, codes and "
            "reconstructions differ from those of the library that wrote it.",
            file, ", ".join(f"{name}={config[name]!r}" for name in others),
        )  # fmt: skip


def whole(config: Mapping[str, Any], name: str, file: Path) -> int:
    """A whole number of at least 1 in a configuration."""
    value = config.get(name)
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArtifactError(f"{file}: {name}={value!r} must be a whole number of at least 1.")
    return value


@contextmanager
def new_folder(folder: Path, *, over: bool = False) -> Iterator[Path]:
    """A folder to write to, which gets its name only when all is written.

    Args:
        folder: The folder.
        over: True if what is there already is replaced.

    Raises:
        ArtifactError: If there is something in `folder` already that is not to be replaced.
    """
    if not over and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArtifactError(f"{folder} exists already and is not empty. Choose a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def existing(file: Path) -> Path:
    """The file itself; a missing one, or one without its content, is an ArtifactError."""
    if not file.exists() and not file.is_symlink():
        raise ArtifactError(f"{file} is missing. Copy the whole folder.")
    require_content(file, ArtifactError)
    return file
