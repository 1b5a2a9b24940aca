"""LMs of the Hugging Face hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import field_validator
from torch import nn

from sae.errors import ConfigError, SAEError
from sae.language.pretrained import explained
from sae.language.quiet import check_repo, quiet, require_hub
from sae.language.sources import LMS, PretrainedLM
from sae.language.text import Tokenizer
from sae.language.weights import config_of, trained_model
from sae.settings import setting

_INSTEAD = "Use the default LM (lm=smollm2-135m) or a local folder (lm=folder lm.path=…)."


@LMS.register("hub")
class HubLM(PretrainedLM):
    """An LM of the Hugging Face hub; what was downloaded once is used without asking again."""

    repo: str = setting(help="for example EleutherAI/pythia-70m-deduped")
    revision: str = setting(
        "main",
        help="branch, tag or commit, for example a training step (step3000); a branch may move on, "
        "a commit cannot",
    )

    @field_validator("repo")
    @classmethod
    def _is_repository(cls, repo: str) -> str:
        if Path(repo).is_dir():  # transformers would read it, whatever changes in there
            raise ConfigError(
                f"lm.repo={repo} is a folder here. Read it with lm=folder lm.path={repo}."
            )
        check_repo("lm.repo", repo)
        return repo

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
