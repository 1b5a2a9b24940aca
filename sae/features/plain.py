"""A record as plain JSON values, with its tokens as text: for results, reports and the screen."""

from typing import Any

import numpy as np
from jaxtyping import Int

from sae.features.record import Record, Shown, Text
from sae.language.pieces import pieces

WINDOW = 16
"""Tokens on each side of the maximum."""


def as_plain(record: Record, contexts: int = 5) -> dict[str, Any]:
    """The numbers of a record and its strongest contexts.

    Args:
        record: With its text.
        contexts: How many of the group `top`.

    Returns:
        `latent`, `density`, `max`, `tokens` (pairs of a token and its share of the activation
        mass), `top_logits`, `bottom_logits`, `histogram` (firings by bin on [0, max]) and
        `contexts`: of each `pieces`, the text of the tokens in the window, `values`, their
        activations (None where the row does not count), and `peak`, the index of the maximum.
    """
    text = record.text
    assert text is not None
    top = [one for one in record.contexts if one.group == "top"][:contexts]
    return {
        "latent": record.name,
        "density": record.density,
        "max": record.max,
        "tokens": [
            [word, float(share)]
            for word, share in zip(
                _words(record.by_mass.ids, text), record.by_mass.values, strict=True
            )
        ],
        "top_logits": _words(record.top_logits.ids, text),
        "bottom_logits": _words(record.bottom_logits.ids, text),
        "histogram": record.histogram.sum(1).tolist(),
        "contexts": [window(one, text) for one in top],
    }  # fmt: skip


def window(shown: Shown, text: Text, size: int = WINDOW) -> dict[str, Any]:
    """The tokens around the maximum of a context, and their activations."""
    first = max(0, shown.peak - size)
    ids = text.tokens[shown.context, first : shown.peak + size + 1].tolist()
    counted = text.counted[shown.context, first : first + len(ids)]
    values: list[float | None] = [0.0 if counts else None for counts in counted.tolist()]
    for position, value in zip(shown.positions.tolist(), shown.values.tolist(), strict=True):
        if first <= position < first + len(ids):
            values[position - first] = value
    return {"pieces": pieces(ids, text.vocabulary), "values": values, "peak": shown.peak - first}


def _words(ids: Int[np.ndarray, " n"], text: Text) -> list[str]:
    return [text.vocabulary[i].decode(errors="replace") for i in ids.tolist()]
