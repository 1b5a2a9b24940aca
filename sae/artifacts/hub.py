"""SAEs on the Hugging Face hub: fetch a folder of a repository."""

import re
from pathlib import Path, PurePosixPath

from sae.errors import ArtifactError, SourceError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")
_PATTERNS = ("*.json", "*.safetensors", "*.pt", "*.npz")


def is_hub_id(text: str) -> bool:
    """True if this can only mean the hub: `owner/name` or `owner/name/subfolder`, and no folder.

    Where the first part is a folder here, the rest is taken for a misspelt path.
    """
    return (
        _ID.fullmatch(text) is not None
        and not Path(text).exists()
        and not Path(text.partition("/")[0]).exists()
    )


def fetch(text: str) -> Path:
    """The local copy of `owner/name` (its top level only) or of one of its subfolders or files.

    Raises:
        SourceError: If the hub cannot be reached and there is no earlier copy.
        ArtifactError: If the hub has no such repository or subfolder.
    """
    from huggingface_hub import snapshot_download

    from sae.language.quiet import first_line, require_hub

    owner, name, *inner = PurePosixPath(text).parts
    repo, inside = f"{owner}/{name}", "/".join(inner)
    patterns = [inside, *(f"{inside}/{end}" for end in _PATTERNS)] if inside else list(_PATTERNS)
    # a repository may hold hundreds of SAEs; `*` matches slashes, too
    options = {
        "allow_patterns": patterns,
        "ignore_patterns": [f"{inside}/*/*" if inside else "*/*"],
    }
    try:
        require_hub(text, "If a local folder is meant: there is none of this name.")
    except SourceError:
        try:
            folder = Path(snapshot_download(repo, local_files_only=True, **options))  # pyright: ignore[reportArgumentType]
        except (OSError, ValueError):
            folder = None
        if folder is None or not (folder / inside).exists():
            raise
    else:
        try:
            folder = Path(snapshot_download(repo, **options))  # pyright: ignore[reportArgumentType]
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"There is no folder {text} here, and {repo} cannot be read from the hub: "
                f"{first_line(error)}. Check the name; a private or gated repository needs a login "
                "to the hub."
            ) from error
    if not (folder / inside).exists():
        raise ArtifactError(f"{repo} is on the hub, but has no {inside} with an SAE's files.")
    return folder / inside
