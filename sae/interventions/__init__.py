"""Changes to the activations of a running LM: reconstructions, ablations, edits of codes."""

from sae.interventions.edits import (
    Edit,
    added,
    at,
    clamped,
    edited,
    projected_out,
    scaled,
    set_to,
    swapped,
    without,
)
from sae.interventions.intervene import Intervention, intervene
from sae.interventions.splice import Positions, Replacements, Spliced, note, splice_conditions
from sae.language.lm import Replacement

__all__ = [
    "Edit", "Intervention", "Positions", "Replacement", "Replacements", "Spliced", "added", "at",
    "clamped", "edited", "intervene", "note", "projected_out", "scaled", "set_to",
    "splice_conditions", "swapped", "without",
]  # fmt: skip
