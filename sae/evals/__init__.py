"""Evaluations: one file each, found by name, each with a typed result.

`EVALS` imports the module of this folder that has the name of the evaluation, so a new evaluation
is one new file, and a mistake in the settings of one does not wait for the others.
"""

from typing import TYPE_CHECKING

from sae.artifacts.placed import PlacedSAE
from sae.evals.base import (
    EVALS,
    Estimate,
    EvalResult,
    Evaluation,
    Measured,
    register,
)
from sae.lazy import lazily
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Table

if TYPE_CHECKING:
    from sae.evals.core import CoreEval
    from sae.evals.downstream import DownstreamEval

__all__ = [
    "EVALS",
    "Bootstrap",
    "CoreEval",
    "DownstreamEval",
    "Estimate",
    "EvalResult",
    "Evaluation",
    "Measured",
    "PlacedSAE",
    "Table",
    "register",
]

__getattr__ = lazily(
    __name__, {"CoreEval": "sae.evals.core", "DownstreamEval": "sae.evals.downstream"}
)
