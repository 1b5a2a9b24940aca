"""Evaluations: one file each, found by name, each with a typed result.

Every module of this folder is imported here, so a new evaluation is one new file.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from sae.artifacts.placed import PlacedSAE  # noqa: E402
from sae.evals.base import (  # noqa: E402
    EVALS,
    Estimate,
    EvalResult,
    Evaluation,
    Measured,
    register,
)
from sae.evals.core import CoreEval  # noqa: E402
from sae.evals.downstream import DownstreamEval  # noqa: E402
from sae.metrics.bootstrap import Bootstrap  # noqa: E402
from sae.tables import Table  # noqa: E402

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
