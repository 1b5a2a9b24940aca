"""Write and read our own format of a saved SAE."""

from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from sae.artifacts.files import new_folder, write_safetensors
from sae.artifacts.format import Format
from sae.checksums import seal, unseal
from sae.dictionaries.sae import SAE, WITH_THRESHOLD, SAEConfig
from sae.errors import ArtifactError, ConfigError
from sae.intact import require_content
from sae.provenance import write_json
from sae.reading import read_object

NAME = "lightning-sae"
FORMAT_VERSION = 2
"""Version 1 had no checksum of config.json."""
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "sae.safetensors"

_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")
_LATER = ("steps", "d_out", "W_skip")
"""Entries that only some SAEs have: written where they say something."""
_ACCEPTED = (
    f"a run folder (it has sae/{CONFIG_FILE}) or an SAE folder ({CONFIG_FILE} and {WEIGHTS_FILE}), "
    "or files of another library (docs/guides/interop.md)"
)
_NAMES_SHOWN = 8


def save_sae(folder: str | Path, sae: SAE) -> Path:
    """Write an SAE so that a reader finds all of it or none; an older one there is replaced.

    Args:
        folder: The SAE folder itself, by custom `<run folder>/sae`.
        sae: The SAE to save. Its metadata must be plain JSON values.

    Returns:
        The folder.
    """
    with new_folder(Path(folder), over=True) as new:
        _write(new, sae)
    return Path(folder)


def _write(folder: Path, sae: SAE) -> None:
    names = _tensors(sae.config.activation, sae.W_skip is not None)
    tensors = {name: getattr(sae, name).detach().cpu().contiguous() for name in names}
    write_safetensors(tensors, folder / WEIGHTS_FILE)
    content = {
        "format": NAME,
        "format_version": FORMAT_VERSION,
        **{n: v for n, v in asdict(sae.config).items() if n not in _LATER or v is not None},
        **({} if sae.W_skip is None else {"W_skip": True}),
        "weights_sha256": _checksum(folder / WEIGHTS_FILE),
        "metadata": sae.metadata,
    }
    write_json(folder / CONFIG_FILE, seal(content))


def load(path: Path) -> SAE:
    """Read a run folder, or the SAE folder itself.

    Raises:
        ArtifactError: If there is no SAE there, or it is damaged, or of a newer format.
    """
    folder = _find(path)
    content = _read_config(folder / CONFIG_FILE)
    names = _tensors(content["activation"], bool(content["W_skip"]))
    tensors = _read_weights(folder / WEIGHTS_FILE, content["weights_sha256"], names)
    try:
        config = SAEConfig(**{field.name: content[field.name] for field in fields(SAEConfig)})
        return SAE(**tensors, config=config, metadata=content["metadata"])
    except ConfigError as error:
        raise ArtifactError(f"{folder} holds no valid SAE: {error}") from error


def _looks_like(path: Path) -> bool:
    return _folder(path) is not None


def _folder(path: Path) -> Path | None:
    folders = (path, path / "sae")
    there = (f for f in folders if (f / CONFIG_FILE).is_file() and (f / WEIGHTS_FILE).is_file())
    return next(there, None)


def _find(path: Path) -> Path:
    if (folder := _folder(path)) is not None:
        return folder
    if not path.exists():
        found = "does not exist"
    elif path.is_file():
        found = "is a file"
    else:
        names = sorted(entry.name for entry in path.iterdir())
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        found = f"holds {', '.join(names[:_NAMES_SHOWN])}{more}" if names else "is empty"
    raise ArtifactError(f"No saved SAE at {path}: it {found}. Give {_ACCEPTED}.")


def _read_config(file: Path) -> dict:
    content = read_object(file)
    if content.get("format") != NAME:
        raise ArtifactError(f'{file} does not say "format": "{NAME}". Give {_ACCEPTED}.')
    version = content.get("format_version")
    if version == FORMAT_VERSION:
        content = unseal(content, file)
    elif version != 1:
        raise ArtifactError(
            f"{file} has format_version {version!r}; this version of lightning-sae reads 1 to "
            f"{FORMAT_VERSION}. Upgrade lightning-sae, or save the SAE again."
        )
    del content["format_version"]
    expected = {field.name: field.type for field in fields(SAEConfig)}
    expected |= {"format": str, "weights_sha256": str, "metadata": dict, "W_skip": bool | None}
    content = dict.fromkeys(_LATER) | content
    if differing := sorted(content.keys() ^ expected.keys()):
        raise ArtifactError(
            f"{file} is damaged: missing or unknown entries {differing}. Save the SAE again."
        )
    for name, kind in expected.items():
        boolean = isinstance(content[name], bool) and name != "W_skip"
        if not isinstance(content[name], kind) or boolean:  # pyright: ignore[reportArgumentType]
            raise ArtifactError(
                f"{file} is damaged: {name}={content[name]!r} must be of type "
                f"{getattr(kind, '__name__', kind)}. Save the SAE again."
            )
    return content


def _tensors(activation: str, skip: bool) -> tuple[str, ...]:
    threshold = ("threshold",) if activation in WITH_THRESHOLD else ()
    return (*_TENSORS, *threshold, *(("W_skip",) if skip else ()))


def _read_weights(file: Path, checksum: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    if _checksum(file) != checksum:
        raise ArtifactError(
            f"{file} is damaged: its checksum differs from the one in {CONFIG_FILE}. Copy the "
            "folder again, or save the SAE again."
        )
    try:
        tensors = load_file(file)
    except safetensors.SafetensorError as error:
        raise ArtifactError(
            f"{file} is not a safetensors file ({error}). Copy it again."
        ) from error
    if sorted(tensors) != sorted(names):
        raise ArtifactError(f"{file} holds {sorted(tensors)}; this SAE has {sorted(names)}.")
    return tensors


def _checksum(file: Path) -> str:
    require_content(file, ArtifactError)
    with file.open("rb") as stream:
        digest = sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


FORMAT = Format("native", _looks_like, load, _write)
