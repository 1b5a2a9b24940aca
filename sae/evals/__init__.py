"""Evaluations: one file each, known by a word, each with a typed result."""

from sae.evals.base import (
    Bootstrap,
    Estimate,
    EvalContext,
    EvalResult,
    Evaluation,
    SplicedLM,
)
from sae.evals.core import CoreEval
from sae.evals.downstream import DownstreamEval

EVALS: dict[str, type[CoreEval] | type[DownstreamEval]] = {
    CoreEval.name: CoreEval,
    DownstreamEval.name: DownstreamEval,
}
"""Evaluations by the word that `eval=` takes; add a class here to make it known."""

__all__ = [
    "EVALS",
    "Bootstrap",
    "CoreEval",
    "DownstreamEval",
    "Estimate",
    "EvalContext",
    "EvalResult",
    "Evaluation",
    "SplicedLM",
]
