"""Sources of LMs: a folder, or random numbers; hub_lm.py and wheel_lm.py have more kinds.

Each kind is a class with the settings of its conf/lm/*.yaml. `identity()` says what decides the
activations; it reads at most a local folder's own files, so a cached run never loads the LM.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator, model_validator
from torch import nn

from sae.dtypes import speedup
from sae.errors import ConfigError, SourceError
from sae.language import tiny
from sae.language.files import files_identity
from sae.language.lm import LanguageModel
from sae.language.pretrained import config_in, lm_files, model_in, random_like, tokenizer_in
from sae.language.quiet import quiet
from sae.language.sites import FAMILIES
from sae.language.sizes import LMSizes, sizes_of
from sae.language.text import Tokenizer
from sae.provenance import content_key
from sae.registry import Registry
from sae.settings import Absolute, Settings, setting
from sae.sharing import sharing

log = logging.getLogger(__name__)

_SLOW = 2
"""From so many times the time of float32 on, a dtype is worth a warning."""


class LMSource(Settings, ABC):
    """Base of the LMs that a configuration can name; `LMSource.from_config` builds the right one.

    Example:
        >>> source = LMSource.from_config({"kind": "random", "name": "tiny", "family": "llama"})
        >>> source == LMSource.from_config(source.to_config())
        True
    """

    where = "lm."
    kind: ClassVar[str]

    name: str = setting(help="for people; it decides nothing")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32",
        help="precision in which the LM runs, and so that of its activations; auto, in a "
        "configuration: bfloat16 where this machine multiplies it fast",
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LMSource":
        """The source that a conf/lm/*.yaml or a saved run describes.

        Raises:
            ConfigError: If the kind is unknown, or a field is missing, unknown or wrong.
        """
        return LMS.build(config)

    def to_config(self) -> dict[str, object]:
        """The JSON-able config that builds an equal source."""
        return {"kind": self.kind, **self.model_dump()}

    def identity(self) -> dict[str, object]:
        """Identity of the activations; JSON-able, and had without the network."""
        config = self.to_config()
        del config["name"]
        return config

    def load(self, device: str = "cpu") -> LanguageModel:
        """The LM, fetched or converted first where the cache lacks it.

        SAEs that train side by side share one.

        Raises:
            SourceError: If it cannot be loaded; the message says what to do.
            SiteError: If its family is not known.
        """
        if device == "cpu" and self.dtype != "float32":
            _warn_if_slow(self.dtype)

        def made() -> LanguageModel:
            model = self._model(getattr(torch, self.dtype)).to(device)
            tokenizer = self.load_tokenizer()
            return LanguageModel(model, tokenizer, name=self.name, identity=self.identity())

        return sharing().once(("lm", content_key(self.identity()), device), made)

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, without loading the weights."""

    def sizes(self) -> LMSizes | None:
        """Size of the LM, without its weights or the network; None while that is unknown."""
        with quiet():
            config = self._config()
            return None if config is None else sizes_of(config)

    @abstractmethod
    def _model(self, dtype: torch.dtype) -> nn.Module:
        """The weights, in this dtype."""

    @abstractmethod
    def _config(self) -> Any:
        """Its transformers configuration, where no network is needed for it; else None."""


LMS: Registry[type[LMSource]] = Registry("lm.kind", "kind")
"""Kinds of LMs by the word that `lm.kind` takes."""


@cache
def _warn_if_slow(dtype: str) -> None:
    times = 1 / speedup("lm", dtype)
    if times > _SLOW:
        log.warning(
            "This CPU multiplies %s %.0f times slower than float32. lm.dtype=float32 is faster; "
            "it counts as another LM.", dtype, times,
        )  # fmt: skip


class PretrainedLM(LMSource, ABC):
    """Base of the kinds whose weights somebody trained, and which may be drawn anew as a control.

    Then all weights, the embeddings too, are drawn from the initial distribution of the LM's
    configuration; tokenizer and architecture stay (docs/reference/controls.md).
    """

    random_weights: bool = setting(False, help="draw all weights anew, as a control")
    random_seed: int = setting(0, ge=0, help="decides that draw")

    @model_validator(mode="after")
    def _looks_like_a_control(self) -> "PretrainedLM":
        if self.random_seed and not self.random_weights:
            raise ConfigError(
                f"lm.random_seed={self.random_seed} has no effect with lm.random_weights=false. "
                "Drop it, or add lm.random_weights=true."
            )
        mark = f"-random{self.random_seed}"
        if self.random_weights and not self.name.endswith(mark):  # a control must look like one
            object.__setattr__(self, "name", self.name + mark)
        return self

    def identity(self) -> dict[str, object]:
        """Identity of the trained LM, and the seed where the weights are random."""
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


class LMInFolder(PretrainedLM, ABC):
    """Base of the kinds whose weights and tokenizer are, or get, in a folder."""

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer, without loading the weights."""
        return tokenizer_in(self._folder())

    def _trained(self, dtype: torch.dtype) -> nn.Module:
        return model_in(self._folder(), dtype)

    def _architecture(self) -> Any:
        return config_in(self._folder())

    @abstractmethod
    def _folder(self) -> Path:
        """The folder, written first where it has to be."""


@LMS.register("folder")
class FolderLM(LMInFolder):
    """An LM that `save_pretrained` wrote, with its tokenizer."""

    path: Absolute = setting(help="the folder")

    def _trained_identity(self) -> dict[str, object]:
        """Hashes of the files, so that it changes with them but not with the folder's place."""
        folder = self._folder()
        files = [path for path in lm_files(folder) if path.is_file()]
        return {"kind": self.kind, "files": files_identity(files, folder), "dtype": self.dtype}

    def _config(self) -> Any:
        return self._architecture()

    def _folder(self) -> Path:
        folder = Path(self.path)
        if not (folder / "config.json").is_file():
            problem = "has no config.json" if folder.is_dir() else "is not a folder"
            raise SourceError(
                f"lm.path={self.path} {problem}. It must be a folder that save_pretrained of a "
                "transformers model and of its tokenizer wrote."
            )
        return folder


@LMS.register("random")
class RandomLM(LMSource):
    """A tiny untrained LM with a byte-level tokenizer: for tests, never for results."""

    family: str = setting(help="a model_type of `sites.FAMILIES`")
    seed: int = setting(0, ge=0, help="decides the weights")
    d_model: int = setting(32, ge=8, help="width of the residual stream, a multiple of 8")
    num_layers: int = setting(3, ge=1, help="blocks")
    max_ctx: int = setting(512, ge=2, help="longest context, in tokens")

    @field_validator("family")
    @classmethod
    def _is_known(cls, family: str) -> str:
        if family not in FAMILIES:
            raise ValueError(f"one of {', '.join(FAMILIES)}")
        return family

    @field_validator("d_model")
    @classmethod
    def _in_heads(cls, d_model: int) -> int:
        if d_model % 8:
            raise ValueError("a multiple of 8")
        return d_model

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
