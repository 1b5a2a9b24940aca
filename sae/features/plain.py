"""A record as plain JSON values, with its tokens as text: for results, reports and the screen."""

import unicodedata
from html import escape
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
                words(record.by_mass.ids, text), record.by_mass.values, strict=True
            )
        ],
        "top_logits": words(record.top_logits.ids, text),
        "bottom_logits": words(record.bottom_logits.ids, text),
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


def as_html(record: Record) -> str:
    """A record as notebooks show it; text of the corpus is escaped."""
    one = as_plain(record)
    most = max(one["histogram"], default=1)
    bars = "".join(
        f'<i style="flex:1;background:#2563eb;height:{100 * count / most:.1f}%"></i>'
        for count in one["histogram"]
    )
    lines = "".join(
        f'<div style="margin-top:.4em;white-space:pre-wrap">{_coloured(context, one["max"])}</div>'
        for context in one["contexts"]
    )
    raised = " ".join(f"<code>{escape(visible(word))}</code>" for word in one["top_logits"])
    return (
        f"<b>latent {one['latent']}</b> fires on {100 * one['density']:.3g} % of the rows, at most "
        f'{one["max"]:.3g}<div style="display:flex;align-items:flex-end;height:3em">{bars}</div>'
        f"{lines}<div>raises {raised}</div>"
    )


def _coloured(context: dict[str, Any], largest: float) -> str:
    spans = []
    for i, (piece, value) in enumerate(zip(context["pieces"], context["values"], strict=True)):
        weight = ";font-weight:bold" if i == context["peak"] else ""
        share = (value or 0.0) / largest
        spans.append(
            f'<bdi style="background:rgba(217,119,6,{0.75 * share:.3f}){weight}">'
            f"{escape(visible(piece))}</bdi>"
        )
    return "".join(spans)


def visible(piece: str) -> str:
    r"""A token as a reader sees it: newlines as signs, control characters replaced.

    Example:
        >>> visible("a\n\0")
        'a↵\ufffd'
    """
    return "".join(
        "↵" if letter == "\n" else "→" if letter == "\t"
        else "\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in piece
    )  # fmt: skip


def words(ids: Int[np.ndarray, " n"], text: Text) -> list[str]:
    """Tokens as text."""
    return [text.vocabulary[i].decode(errors="replace") for i in ids.tolist()]
