"""Changes to the activations of a running LM: reconstructions, ablations, edits of codes."""

from sae.interventions.edits import without
from sae.interventions.splice import Positions, Replacements, note, splice_conditions
from sae.language.lm import Replacement

__all__ = ["Positions", "Replacement", "Replacements", "note", "splice_conditions", "without"]
