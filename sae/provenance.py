"""Origin of a number: versions, commit, machine, command, and the cache folder."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import platformdirs

from sae.errors import ConfigError
from sae.writing import DAY_SECONDS, replacing, sweep

_PACKAGES = (
    "lightning-sae", "torch", "lightning", "transformers", "torchmetrics", "zarr", "hydra-core",
    "numpy", "wandb",
)  # fmt: skip


def cache_dir() -> Path:
    """Folder for LMs, texts and activations: `$SAE_CACHE` or the user's cache directory.

    Raises:
        ConfigError: If neither is known: a user without an entry and without HOME.
    """
    given = os.environ.get("SAE_CACHE")
    try:
        folder = Path(given or platformdirs.user_cache_dir("lightning-sae")).expanduser()
    except (RuntimeError, KeyError):
        folder = Path("~")
    if "~" in folder.parts[:2] or not (given or folder.is_absolute()):
        raise ConfigError(
            "There is no home directory for the cache: HOME is not set, and the system does not "
            "know this user. Set SAE_CACHE to a folder that you can write to."
        )
    return folder


def make_cache_dir(folder: Path) -> None:
    """Make a folder of the cache.

    Raises:
        ConfigError: If that cannot be; names SAE_CACHE.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"The cache cannot be written: {folder} ({error.strerror}). Set SAE_CACHE to a folder "
            "that you can write to."
        ) from error
    sweep(folder, older_than_seconds=DAY_SECONDS)  # younger: another process may be at it


def content_key(identity: Mapping[str, object]) -> str:
    """16 hexadecimal digits that change when anything in the JSON-able `identity` does.

    Example:
        >>> content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
        True
    """
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def provenance() -> dict[str, object]:
    """Versions, git commit, machine, command and time, to store beside a number."""
    import torch

    return {
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "git": _git(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """The CPU as its maker calls it; where the system does not tell, its architecture."""
    try:
        if sys.platform == "darwin":
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return platform.processor() or platform.machine()
    told = _cpuinfo()
    words = [told[name] for name in ("model name", "CPU implementer", "CPU part") if name in told]
    return " ".join(words) or platform.processor() or platform.machine()


def cpu_features() -> str:
    """Instruction sets of the CPU, as Linux lists them; empty elsewhere.

    Virtual machines give CPUs of several generations one name ("AMD EPYC").
    """
    told = _cpuinfo()
    return told.get("flags") or told.get("Features") or ""


def _cpuinfo() -> dict[str, str]:
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in lines}


def write_json(path: Path, content: object, indent: int | None = 2) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one.

    Args:
        path: The file.
        content: Plain JSON values.
        indent: Spaces; None writes one line, which is smaller and faster: for large files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=indent, allow_nan=False) + "\n")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, object] | None:
    """Commit of this checkout and whether files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _run_git(root, "rev-parse", "HEAD")
        changed = bool(_run_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _run_git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
    )
    return result.stdout.strip()
