"""Tokens as text and as HTML: for results, reports, notebooks and the screen."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int

from sae.features.shown import Shown, Text
from sae.language.pieces import pieces, visible

WINDOW = 16
"""Tokens shown on each side of the maximum; contexts that are equal there are duplicates."""


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


def as_html(one: Mapping[str, Any]) -> str:
    """A record as notebooks show it; text of the corpus is escaped.

    Args:
        one: As `Record.as_plain` gives it.
    """
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


def _coloured(context: Mapping[str, Any], largest: float) -> str:
    spans = []
    for i, (piece, value) in enumerate(zip(context["pieces"], context["values"], strict=True)):
        weight = ";font-weight:bold" if i == context["peak"] else ""
        share = (value or 0.0) / largest
        spans.append(
            f'<bdi style="background:rgba(217,119,6,{0.75 * share:.3f}){weight}">'
            f"{escape(visible(piece))}</bdi>"
        )
    return "".join(spans)


def words(ids: Int[np.ndarray, " n"], text: Text) -> list[str]:
    """Text of each token, by id."""
    return [text.vocabulary[i].decode(errors="replace") for i in ids.tolist()]


def marked(context: Mapping[str, Any] | None) -> str:
    r"""A context of `Record.as_plain` as one line, its peak in «»; empty for None.

    Example:
        >>> marked({"pieces": ["It", " is", "\n"], "peak": 1})
        'It« is»↵'
    """
    if context is None:
        return ""
    pieces = [visible(piece) for piece in context["pieces"]]
    pieces[context["peak"]] = f"«{pieces[context['peak']]}»"
    return "".join(pieces)
