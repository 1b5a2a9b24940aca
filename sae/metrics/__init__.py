"""Streaming metrics over the formulas of `sae.functional`: float64 sums, intervals, DDP."""

from sae.metrics.activations import FeatureActivations
from sae.metrics.firing import Firing
from sae.metrics.next_token import NextToken
from sae.metrics.other_libraries import OTHER_DEFINITIONS, OtherDefinitions
from sae.metrics.reconstruction import Reconstruction
from sae.metrics.robust import LIGHT_MEDIANS, RobustReconstruction

__all__ = [
    "LIGHT_MEDIANS",
    "OTHER_DEFINITIONS",
    "FeatureActivations",
    "Firing",
    "NextToken",
    "OtherDefinitions",
    "Reconstruction",
    "RobustReconstruction",
]
