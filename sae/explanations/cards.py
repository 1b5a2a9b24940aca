"""Contexts of explained latents, as pages show them beside the explanation."""

from collections.abc import Sequence
from typing import Any

from sae.artifacts.placed import PlacedSAE
from sae.explanations.latents import index_of
from sae.explanations.study import Row
from sae.features.make import all_firings, contexts_in, place_of, text_of
from sae.features.record import Record
from sae.features.summary import summarise
from sae.types import Split

SHOWN = 24
"""Latents whose contexts are on the page."""


def shown_contexts(
    one: PlacedSAE, rows: Sequence[Row], on: Split, num_tokens: int, batch_rows: int
) -> list[dict[str, Any]]:
    """The strongest contexts of the first latents that were explained, as pages show them.

    Args:
        one: The SAE.
        rows: Its scores.
        on: The split that contexts are of.
        num_tokens: Tokens of the split that are read.
        batch_rows: Vectors encoded at once.
    """
    store = one.source.store(on)
    firings = all_firings(one, on, num_tokens=num_tokens, batch_rows=batch_rows)
    text = text_of(one.source, on, firings.counted, contexts_in(store, num_tokens))
    place = place_of(text, store, seed=0)
    found = []
    shown = {row.latent: row for row in reversed(rows) if row.state == "explained"}
    for row in [*shown.values()][:SHOWN]:
        index = index_of(row.latent, one.sae.d_sae)
        summed = summarise(index, firings.read(range(index, index + 1))[0], place)
        sign = -1 if row.latent.startswith("-") else 1
        record = Record(
            latent=index % one.sae.d_sae,
            sign=sign,
            density=row.density,
            text=text,
            **vars(summed),
        )
        found.append(record.as_plain(3) | {"explanation": row.explanation})
    return found
