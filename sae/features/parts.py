"""Parts of records that several formats of other tools have in common."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from sae.features.plain import words
from sae.features.record import INTERVALS, Listed, Record, Shown
from sae.features.records import Records
from sae.language.pieces import pieces
from sae.progress import progress
from sae.types import Ends, Point

BATCH = 128
"""Latents in a file; Neuronpedia takes no more in a call."""
_MOST_LOGITS = 20


class Explained(NamedTuple):
    """An explanation of a latent.

    Args:
        text: In words.
        method: Name of the explainer.
        model: Name of the LM that wrote it, or of what did.
    """

    text: str
    method: str
    model: str


Explanations = Mapping[int, Sequence[Explained]]
"""Explanations of latents, by their index (`index_of`)."""


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records, `BATCH` at a time."""
    left = iter(records)
    while batch := list(islice(left, BATCH)):
        yield batch


def told(records: Records, word: str) -> Iterator[Record]:
    """The records, with a bar of progress.

    Args:
        records: The records.
        word: Name of the format.
    """
    with progress(f"export {word}", len(records), "latents") as advance:
        for record in records:
            yield record
            advance(1)


def fired(record: Record) -> list[Shown]:
    """The contexts in which it fires: the strongest, and those of its intervals."""
    return [one for one in record.contexts if one.group in ("top", "interval")]


def interval_of(shown: Shown, record: Record) -> tuple[float, float, float]:
    """Range and share of the firings of its interval; -1, 99, -1 for the strongest contexts."""
    if shown.group == "top":  # as SAEDashboard marks them
        return -1.0, 99.0, -1.0
    width = record.max / INTERVALS
    share = float(record.interval_counts[shown.interval - 1] / record.firings)
    return (shown.interval - 1) * width, shown.interval * width, share


def tokens_and_values(shown: Shown, record: Record) -> tuple[list[str], list[float]]:
    """The whole context; no NUL, which the databases behind these formats refuse."""
    assert record.text is not None
    ids = record.text.tokens[shown.context].tolist()
    values = np.zeros(len(ids))
    values[shown.positions] = shown.values
    return [without_nul(piece) for piece in pieces(ids, record.text.vocabulary)], values.tolist()


def without_nul(text: str) -> str:
    """Text that databases take: NUL and halves of surrogate pairs are replaced."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def logits(record: Record, name: str) -> list[dict[str, Any]]:
    """Tokens and numbers of `top_logits` or `bottom_logits`, 20 at most."""
    found: Listed = getattr(record, name)
    assert record.text is not None
    tokens = [without_nul(word) for word in words(found.ids, record.text)]
    values = found.values.tolist()
    return [{"token": t, "value": v} for t, v in zip(tokens, values, strict=True)][:_MOST_LOGITS]


def numbers_of(record: Record) -> dict[str, Any]:
    """Fields of a latent that SAEDashboard and Neuronpedia's bulk rows share."""
    width = record.max / len(record.histogram)
    negative, positive = logits(record, "bottom_logits"), logits(record, "top_logits")
    return {
        "neuron_alignment_indices": record.neurons.ids.tolist(),
        "neuron_alignment_values": record.neurons.values.tolist(),
        "neg_str": [one["token"] for one in negative],
        "neg_values": [one["value"] for one in negative],
        "pos_str": [one["token"] for one in positive],
        "pos_values": [one["value"] for one in positive],
        "frac_nonzero": record.density,
        "freq_hist_data_bar_values": [(i + 0.5) * width for i in range(len(record.histogram))],
        "freq_hist_data_bar_heights": record.histogram.sum(1).tolist(),
    }


def index_of(record: Record, records: Records) -> int:
    """The negative sides of signed codes come after all positive ones."""
    return record.latent + records.d_sae * (record.sign < 0)


def silent(records: Records) -> list[int]:
    """Latents without a record, by index."""
    return sorted(set(range(records.facts["latents"])) - set(records.indices))


def point_of(records: Records) -> Point:
    """The point that the SAE writes."""
    return Ends.parse(records.facts["point"]).writes[0]
