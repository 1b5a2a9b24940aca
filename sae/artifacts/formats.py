"""All file formats by name; load an SAE from any, save one in those that can be written."""

import re
from pathlib import Path

import torch

from sae.artifacts import (
    authors,
    dictionary_learning,
    gemma_scope,
    native,
    openai,
    saelens,
    sparsify,
)
from sae.artifacts.files import new_folder
from sae.artifacts.format import Format
from sae.artifacts.hub import fetch, is_hub_id
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError, ConfigError, SAEError

FORMATS: dict[str, Format] = {
    format.word: format
    for format in (
        native.FORMAT, saelens.FORMAT, sparsify.FORMAT, dictionary_learning.FORMAT,
        gemma_scope.FORMAT, authors.FORMAT, openai.FORMAT,
    )
}  # fmt: skip
"""Formats by name, in the order in which they are tried: our own first."""


def load(path: str | Path, format: str | None = None, device: str | torch.device = "cpu") -> SAE:
    """Load an SAE that this or another library saved; it computes the same codes as there.

    Args:
        path: A run folder, an SAE folder, a folder or file of another library, or on the Hugging
            Face hub `owner/name` or `owner/name/subfolder`. Of a file with several SAEs, the
            position follows a colon: `learned_dicts.pt:7`.
        format: Key of `FORMATS`; None finds it by the files.
        device: Device to put the weights on.

    Raises:
        ArtifactError: If there is no SAE there, it is damaged, of a newer format, or of a kind
            that cannot be folded into `act(x @ W_enc + b_enc)`.
        SourceError: If the hub cannot be reached.

    Example:
        >>> import sae
        >>> model = sae.load("outputs/my_run")  # doctest: +SKIP
        >>> x_hat = model(x)  # doctest: +SKIP
    """
    where, member = locate(path)
    if format is not None:
        chosen = format_named(format)
    else:
        found = (known for known in FORMATS.values() if known.looks_like(where))
        chosen = next(found, native.FORMAT)  # whose error lists what is there
    if not chosen.many and member is not None:
        raise ArtifactError(f"{where} ({chosen.word}) holds one SAE. Drop :{member}.")
    try:
        sae = chosen.load(where, member) if chosen.many else chosen.load(where)
    except SAEError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # values of a wrong type may stand anywhere in a file of another library
        raise ArtifactError(
            f"{where} ({chosen.word}) is damaged, or another version wrote it: {error!r:.200}"
        ) from error
    return sae.to(device)


def locate(path: str | Path) -> tuple[Path, int | None]:
    """Folder of the files, fetched first from the hub, and the position after the colon."""
    text, member = str(path), None
    if not Path(text).expanduser().exists() and (found := re.fullmatch(r"(.+):(\d+)", text)):
        text, member = found[1], int(found[2])
    return (fetch(text) if is_hub_id(text) else Path(text).expanduser()), member


def save(path: str | Path, sae: SAE, format: str = "native") -> Path:
    """Write an SAE into a new folder, in our own format or in another library's.

    Args:
        path: The folder; it must be new or empty.
        sae: The SAE to save.
        format: A key of `FORMATS` that can be written.

    Returns:
        The folder.

    Raises:
        ArtifactError: If the format cannot hold this SAE, or something is there already.
    """
    writer = format_named(format).save
    if writer is None:
        words = ", ".join(word for word, known in FORMATS.items() if known.save)
        raise ConfigError(f"format={format} is only read, not written. Choose one of {words}.")
    folder = Path(path).expanduser()
    with new_folder(folder) as new:
        writer(new, sae)
    return folder


def format_named(word: str) -> Format:
    """The format of this name.

    Raises:
        ConfigError: If no format has it.
    """
    if word not in FORMATS:
        raise ConfigError(f"format={word} is not known. Choose one of {', '.join(FORMATS)}.")
    return FORMATS[word]
