"""SAEs on the Hugging Face hub: fetch a folder of a repository, and publish one."""

import copy
import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError, SourceError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(/[\w./-]+)?")
_PATTERNS = ("*.json", "*.safetensors", "*.pt", "*.npz")


def is_hub_id(text: str) -> bool:
    """Whether this can only mean the hub: `owner/name` or `owner/name/subfolder`, and no folder.

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
                f"There is no folder {text} here, and {repo} cannot be had from the hub: "
                f"{first_line(error)}. Check the name; a private or gated repository needs a login "
                "to the hub."
            ) from error
    if not (folder / inside).exists():
        raise ArtifactError(f"{repo} is on the hub, but has no {inside} with an SAE's files.")
    return folder / inside


def push_to_hub(sae: SAE, repo_id: str, format: str = "native", *, private: bool = False) -> str:
    """Publish an SAE as the top level of a repository of the Hugging Face hub.

    Of paths on this machine in its metadata (lm.path, corpus.path, …) only the last part goes.

    Args:
        sae: What to publish.
        repo_id: `owner/name`; made if it is not there. You must be logged in to the hub.
        format: As in `save`.
        private: Whether a repository that is made can be seen by its owner only.

    Returns:
        Where it can be seen.

    Raises:
        ArtifactError: If the format cannot hold this SAE, or the hub refuses.
    """
    from huggingface_hub import create_repo, upload_folder

    from sae.artifacts.formats import save
    from sae.language.quiet import first_line

    with TemporaryDirectory() as temporary:
        published = copy.copy(sae)  # the weights are shared
        published.metadata = _without_paths(sae.metadata)
        folder = save(Path(temporary) / "sae", published, format)
        try:
            url = create_repo(repo_id, private=private, exist_ok=True)
            upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=f"Add an SAE ({format} format)"
            )
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"The hub does not take {repo_id}: {first_line(error)}. The name must be "
                "owner/name, and you must be logged in to the hub with the right to write there."
            ) from error
    return str(url)


def _without_paths(value: Any) -> Any:
    """Plain JSON values in which an absolute path is its last part: where it lay is private."""
    if isinstance(value, dict):
        return {name: _without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    kind = PureWindowsPath if PureWindowsPath(value).is_absolute() else PurePosixPath
    path = kind(value)
    return path.name if path.is_absolute() or value.startswith("~") else value
