"""Records of single latents: where they fire on a text, and what their weights say.

    records = sae.features.records("outputs/mine")
    records[123]

`records` makes them (make.py) in two passes over sparse codes: every firing goes to disk, sorted by
latent (firings.py), then each latent is read and summed up exactly (summary.py).
"""

from sae.features.make import records
from sae.features.own_text import latents_on
from sae.features.record import Listed, Record, Shown, Text
from sae.features.records import Records

__all__ = ["Listed", "Record", "Records", "Shown", "Text", "latents_on", "records"]
