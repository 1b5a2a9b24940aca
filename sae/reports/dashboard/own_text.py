"""A text of the user's own, as the page reads it: from disk, or from the server."""

from typing import Any

import numpy as np
from jaxtyping import Int

from sae.features.own_text import Reading, deciles
from sae.features.records import Records
from sae.reports.dashboard.packing import bits, floats, integers, piece


def packed_text(reading: Reading, records: Records) -> dict[str, Any]:
    """Tokens and firings of a text, with the vocabulary that it needs.

    Args:
        reading: The latents that fire on it.
        records: Records of the same SAE, for the deciles; latents that are silent there have
            decile 0.
    """
    written = reading.written
    latents, place = np.unique(reading.index, return_inverse=True)
    return {
        "tokens": integers(written.tokens), "counted": bits(reading.counted),
        "starts": integers(written.starts), "texts": integers(written.texts),
        "row": integers(reading.row), "place": integers(place), "value": floats(reading.value),
        "decile": integers(deciles(reading, records)),
        "latents": [records.name_of(index) for index in latents.tolist()],
        "vocabulary": packed_vocabulary(np.unique(written.tokens), records),
    }  # fmt: skip


def packed_vocabulary(ids: Int[np.ndarray, " n"], records: Records) -> dict[str, Any]:
    """Some tokens of the LM's vocabulary."""
    pieces = [piece(records.text.vocabulary[i]) for i in ids.tolist()]
    return {"ids": integers(ids), "pieces": pieces}
