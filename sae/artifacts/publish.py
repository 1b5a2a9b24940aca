"""Publish an SAE on the Hugging Face hub."""

import copy
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any

from sae.artifacts.formats import save
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError


def push_to_hub(sae: SAE, repo_id: str, format: str = "native", *, private: bool = False) -> str:
    """Publish an SAE as the top level of a repository of the Hugging Face hub.

    Of paths on this machine in its metadata (lm.path, corpus.path, …) only the last part goes.

    Args:
        sae: The SAE to publish.
        repo_id: `owner/name`; made if it is not there. You must be logged in to the hub.
        format: As in `save`.
        private: True if a repository that is made can be seen by its owner only.

    Returns:
        Where it can be seen.

    Raises:
        ArtifactError: If the format cannot hold this SAE, or the hub refuses.
    """
    from huggingface_hub import create_repo, upload_folder

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
                f"The hub refuses {repo_id}: {first_line(error)}. The name must be "
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
