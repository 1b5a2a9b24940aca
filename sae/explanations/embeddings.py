"""Embeddings of texts, kept in the cache: every text is embedded once."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from sae.cached import cached
from sae.progress import progress

_PART_TEXTS = 960


@runtime_checkable
class Encoder(Protocol):
    """Maps texts to vectors of length 1."""

    key: str
    """Changes when the vectors do."""

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
        """A vector for each text."""
        ...


class Embeddings:
    """Vectors of texts; a killed pass goes on after the last whole part.

    Args:
        encoder: The encoder.
    """

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._known: dict[str, np.ndarray] = {}
        self.count = 0
        """Texts that were embedded, or found in the cache."""

    def of(self, texts: Sequence[str]) -> Float[np.ndarray, "texts d"]:
        """A vector for each text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if len(new) > _PART_TEXTS // 10:
            with progress("embed", len(new), "texts") as advance:
                self._add(new, advance)
        else:
            self._add(new, lambda _: None)
        return np.stack([self._known[text] for text in texts]) if len(texts) else np.zeros((0, 0))

    def _add(self, new: Sequence[str], advance: Callable[[int], None]) -> None:
        for first in range(0, len(new), _PART_TEXTS):
            part = new[first : first + _PART_TEXTS]
            digest = sha256("\0".join(part).encode("utf-8", "replace")).hexdigest()
            identity = {"encoder": self._encoder.key, "texts": digest, "count": len(part)}

            def make(part: Sequence[str] = part):
                return {"vectors": torch.from_numpy(self._encoder.embed(part))}, None

            found, _ = cached("embeddings/", identity, make)
            self._known.update(zip(part, found["vectors"].numpy(), strict=True))
            self.count += len(part)
            advance(len(part))
