"""Several SAEs in one LM at once, each at its own point of the same text."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sae.activations.sources import ActivationSource, LMActivations
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.evals.base import EvalContext, EvalResult
from sae.evals.build import Evals, check_source, context_of, ctx_of, make_evals, offers_of


@runtime_checkable
class TogetherEvaluation(Protocol):
    """An evaluation that knows what several SAEs do together."""

    def run_together(self, contexts: Sequence[EvalContext]) -> EvalResult:
        """Measure; the contexts have the same text and different points."""
        ...


def check(evals: Evals, sources: Sequence[ActivationSource]) -> None:
    """Find out, before anything is computed, whether these can be measured together.

    Raises:
        ConfigError: If there is one SAE only, they are of different LMs or texts, two belong to the
            same point, or no evaluation can measure several.
    """
    if len(sources) < 2:
        raise ConfigError("together=true has no effect on one SAE. Give several: 'run=[a,b]'.")
    of_lm = [source for source in sources if isinstance(source, LMActivations)]
    texts = {source.specs["test"].key for source in of_lm}
    if len(of_lm) < len(sources) or len(texts) > 1:
        raise ConfigError(
            "together=true needs SAEs of the same LM, text, context length and dtype; these "
            "differ. Choose others, or give the same lm=, corpus= and tokens= for all."
        )
    if joined := sorted(str(source.ends) for source in of_lm if source.ends.point is None):
        raise ConfigError(
            f"together=true splices in SAEs at one point each, and not {', '.join(joined)}. "
            "Measure it by itself, with together=false."
        )
    points = [str(source.ends) for source in of_lm]
    if twice := sorted({point for point in points if points.count(point) > 1}):
        raise ConfigError(
            f"together=true: several SAEs at {', '.join(twice)}. Only one can stand there; "
            "measure them one after the other, with together=false."
        )
    check_source(evals, sources[0])
    if not _able(evals, sources[0]):
        raise ConfigError(
            f"eval=[{','.join(evals)}] measures one SAE at a time. Choose eval=[downstream], or "
            "together=false."
        )


def run(
    saes: Sequence[SAE], sources: Sequence[ActivationSource], evals: Evals, device: str = "cpu"
) -> dict[str, EvalResult]:
    """Run the evaluations that can measure several SAEs on the test split of prepared sources.

    Args:
        saes: What is spliced in.
        sources: Where the activations of each come from.
        evals: Settings by the word of the evaluation; those that know one SAE only are left out.
        device: Where the SAEs and the LM compute.

    Raises:
        ConfigError: See `check`.
    """
    check(evals, sources)
    contexts = [context_of(sae, source, device) for sae, source in zip(saes, sources, strict=True)]
    able = _able(evals, sources[0])
    return {word: evaluation.run_together(contexts) for word, evaluation in able.items()}


def _able(evals: Evals, source: ActivationSource) -> dict[str, TogetherEvaluation]:
    made = make_evals(evals, ctx_of(source), offers_of(source))
    return {word: one for word, one in made.items() if isinstance(one, TogetherEvaluation)}
