"""Streaming metrics over the formulas of `sae.functional`: float64 sums, intervals, DDP.

Names are imported when they are first used: torchmetrics takes two seconds.
"""

from typing import TYPE_CHECKING

from sae.lazy import lazily

if TYPE_CHECKING:
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

_HOMES = {
    "FeatureActivations": "activations",
    "Firing": "firing",
    "LIGHT_MEDIANS": "robust",
    "NextToken": "next_token",
    "OTHER_DEFINITIONS": "other_libraries",
    "OtherDefinitions": "other_libraries",
    "Reconstruction": "reconstruction",
    "RobustReconstruction": "robust",
}
__getattr__ = lazily(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
