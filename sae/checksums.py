"""Checksums: a file that is read back must be the file that was written.

One flipped byte of a weight is a weight, of a text a text: nothing but a checksum tells. CRC-32
finds every damage of up to 32 neighbouring bits and all but one in four billion others, at
gigabytes a second; they do not protect against people who change a file on purpose.
"""

import json
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae.errors import ArtifactError
from sae.intact import follow_umask
from sae.provenance import content_key, write_json
from sae.reading import read_object, read_text
from sae.writing import naming

if TYPE_CHECKING:  # programs that end early need not wait for it
    from torch import Tensor

FOLDER_FILE = "checksums.json"
_BLOCK_BYTES = 1 << 22
_SEALED, _CRC, _FACTS = "sealed", "crc32", "facts"
_SEAL = re.compile("# crc32 ([0-9a-f]{8}) of the lines below")


def crc32_of(file: Path) -> int:
    """CRC-32 of a file's bytes, as zip files have it."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def check_zip(file: Path) -> None:
    """Read all of a zip file, such as one of `torch.save`, which holds a CRC-32 of each member.

    Raises:
        ArtifactError: If a byte that says something differs.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (*ZIP_DAMAGE, OSError) as error:
        raise ArtifactError(f"{file} is damaged ({error}).") from error
    if bad is not None:
        raise ArtifactError(f"{file} is damaged (the checksum of {bad} differs).")


ZIP_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError,
    KeyError, OverflowError, MemoryError,
)  # fmt: skip
"""Errors that `zipfile` raises on a damaged file: some flips ask for a password or a codec."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with its checksum, as entry `checksum`."""
    plain = json.loads(json.dumps(content, allow_nan=False))
    return plain | {"checksum": content_key(plain)}


def unseal(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The content without its checksum.

    Raises:
        ArtifactError: If the checksum is missing or differs.
    """
    plain = {name: value for name, value in content.items() if name != "checksum"}
    if content.get("checksum") != content_key(plain):
        raise ArtifactError(
            f"{file} is damaged, or was changed by hand: its checksum differs. Copy it again from "
            "where it came, or make it again."
        )
    return plain


def read_sealed(file: Path) -> dict[str, Any]:
    """The object in a JSON file without its checksum.

    Raises:
        ArtifactError: If it cannot be read, or its checksum is missing or differs.
    """
    return unseal(read_object(file), file)


def read_unsealed(file: Path) -> dict[str, Any]:
    """The object in a JSON file without its checksum; one that has none passes.

    Raises:
        ArtifactError: If it cannot be read, or differs from its checksum.
    """
    content = read_object(file)
    last = next(reversed(content), None)
    # where the name of the entry is what was damaged, its value tells
    rest = {name: value for name, value in content.items() if name != last}
    if "checksum" in content or (last is not None and content[last] == content_key(rest)):
        return unseal(content, file)
    return content


def seal_text(text: str) -> str:
    """A YAML text with its checksum as a comment in its first line."""
    return f"# crc32 {zlib.crc32(text.encode()):08x} of the lines below\n{text}"


def check_text(file: Path) -> None:
    """Compare a text with what `seal_text` noted; one without such a line passes.

    Raises:
        ArtifactError: If it cannot be read, or differs.
    """
    first, _, text = read_text(file).partition("\n")
    noted = _SEAL.fullmatch(first)
    if noted and int(noted[1], 16) != zlib.crc32(text.encode()):
        raise ArtifactError(
            f"{file} is damaged: its checksum differs from the one in its first line. Restore it "
            "from a copy. If you changed it yourself, remove that line."
        )


def seal_files(folder: Path, files: Iterable[Path]) -> None:
    """Note size and CRC-32 of files of a folder, in `checksums.json` there."""
    noted = {path.name: [path.stat().st_size, crc32_of(path)] for path in files}
    write_json(folder / FOLDER_FILE, seal({"files": noted}))


def check_folder(folder: Path, only: Collection[str] | None = None) -> None:
    """Compare a folder with what `seal_files` noted; one that was never sealed passes.

    Args:
        folder: The folder.
        only: Names of the files that are about to be read; None: all that were noted.

    Raises:
        ArtifactError: If a file is missing or differs.
    """
    note = folder / FOLDER_FILE
    if not os.path.lexists(note):
        return
    try:
        files = unseal(read_object(note), note)["files"]
        for name, (size, crc) in files.items():
            if only is not None and name not in only:
                continue
            path = folder / name
            if path.stat().st_size != size or crc32_of(path) != crc:
                raise ArtifactError(
                    f"{path} is damaged: its checksum differs from the one in {FOLDER_FILE} beside "
                    "it. Restore it from a copy. If you changed it yourself, remove that file."
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder} is damaged ({error}).") from error


def save_tensors(file: Path, tensors: "Mapping[str, Tensor]", facts: object = None) -> None:
    """Write a safetensors file with a checksum over the tensors and `facts`, plain JSON."""
    from safetensors.torch import save_file

    made = {name: tensor.contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    with naming(file):
        # one entry: safetensors writes several in any order, and equal content shall be equal bytes
        save_file(made, file, metadata={_SEALED: f"{_crc_of(made, text)} {text}"})
    follow_umask(file)


def load_tensors(file: Path) -> "tuple[dict[str, Tensor], Any]":
    """The tensors and facts of `save_tensors`; a file without a checksum passes.

    Raises:
        ArtifactError: If it is damaged.
    """
    import safetensors

    try:
        with safetensors.safe_open(file, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            noted = content.metadata() or {}
        if set(noted) - {_SEALED, _CRC, _FACTS, "format"}:
            raise ArtifactError(f"{file} is damaged: the names in its header differ.")
        crc, _, text = noted.get(_SEALED, "").partition(" ")
        if not crc:  # written before the two were one entry
            crc, text = noted.get(_CRC, ""), noted.get(_FACTS, "null")
        if crc and crc != _crc_of(tensors, text):
            raise ArtifactError(f"{file} is damaged: its checksum differs.")
        return tensors, json.loads(text)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{file} is damaged ({error}).") from error


def sha256_of(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 of named tensors, such as the weights of a module: a name for them."""
    import torch

    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        values: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(values)
    return digest.hexdigest()


def _crc_of(tensors: "Mapping[str, Tensor]", text: str) -> str:
    import torch

    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), crc)
        if tensor.numel():  # torch cannot view nothing as bytes
            numbers: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            crc = zlib.crc32(numbers, crc)
    return f"{crc:08x}"
