"""Changes to the activations of a running LM: reconstructions, ablations, edits of codes."""

from sae.interventions.edits import (
    Edit,
    at,
    edited,
    projected_out,
    scaled,
    set_to,
    swapped,
    without,
)
from sae.interventions.splice import Positions, Replacements, Spliced, note, splice_conditions
from sae.language.lm import Replacement

__all__ = [
    "Edit", "Positions", "Replacement", "Replacements", "Spliced", "at", "edited", "note",
    "projected_out", "scaled", "set_to", "splice_conditions", "swapped", "without",
]  # fmt: skip
