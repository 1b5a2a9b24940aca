"""Evaluations by their names: made from settings, checked, and run on placed SAEs."""

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sae.activations.sources import ActivationSource, LMActivations
from sae.activations.superposition import SuperpositionActivations
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.evals.base import EVALS, EvalResult, Evaluation
from sae.types import Ends, Split

log = logging.getLogger(__name__)
Evals = Mapping[str, Mapping[str, Any]]
"""Settings of evaluations by their names, as in the node `eval`."""
_NEEDS = {
    "truth": "the true features, known to activations=superposition only",
    "tokens": "the tokens behind the activations; a folder of activations has none",
}
"""Requirements of evaluations, in words."""


def run_evals(
    sae: SAE, source: ActivationSource, evals: Evals, device: str = "cpu"
) -> dict[str, EvalResult]:
    """Run evaluations of one SAE on the test split of a prepared source.

    Args:
        sae: The SAE to measure.
        source: Source of its activations.
        evals: Settings by the name of the evaluation; those that need more than the source
            offers (`offers_of`) are left out.
        device: Device of the SAE and the LM.

    Raises:
        ConfigError: If a name is unknown or a setting does not fit.
    """
    return measure([PlacedSAE(sae.to(device), source)], evals)


def measure(
    subjects: Sequence[PlacedSAE], evals: Evals, on: Split = "test"
) -> dict[str, EvalResult]:
    """Run evaluations of one SAE, or of several that are spliced in at once.

    Args:
        subjects: SAEs whose split is prepared.
        evals: Settings by the name of the evaluation; those that cannot measure these SAEs are
            left out.
        on: The split.

    Raises:
        ConfigError: If a name is unknown or a setting does not fit, or the SAEs cannot be spliced
            in together.
    """
    if len(subjects) > 1:
        check_together(subjects, evals)
    source = subjects[0].source
    made = make_evals(evals, ctx_of(source), offers_of(source))
    if len(subjects) > 1:
        made = {name: one for name, one in made.items() if one.takes == "both"}
    elif subjects[0].ends is not None and subjects[0].ends.point is None:
        made = _joined(made, subjects[0].ends)
    return {name: evaluation.run(subjects, on) for name, evaluation in made.items()}


def check_together(subjects: Sequence[PlacedSAE], evals: Evals) -> None:
    """Find out, before anything is computed, whether SAEs can be spliced in at once.

    Raises:
        ConfigError: If there is one SAE only, they are of different LMs or texts, two belong to the
            same point, or no evaluation can measure several.
    """
    if len(subjects) < 2:
        raise ConfigError("together=true has no effect on one SAE. Give several: 'run=[a,b]'.")
    of_lm = [one.source for one in subjects if isinstance(one.source, LMActivations)]
    texts = {source.specs["test"].key for source in of_lm}
    if len(of_lm) < len(subjects) or len(texts) > 1:
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
    check_source(evals, of_lm[0])
    if not any(EVALS[name].takes == "both" for name in evals):
        raise ConfigError(
            f"eval=[{','.join(evals)}] measures one SAE at a time. Choose eval=[downstream], or "
            "together=false."
        )


def check_evals(evals: Evals, ctx: int | None, offers: Collection[str] = ()) -> None:
    """Find every mistake in the settings of evaluations before anything is computed.

    Args:
        evals: Settings by the name of the evaluation.
        ctx: Tokens in a context; None where there are no tokens behind the activations.
        offers: Further properties of the source (`offers_of`).

    Raises:
        ConfigError: If a name or a setting is unknown, a value is out of range, or no evaluation
            is possible with these activations.
    """
    make_evals(evals, ctx, offers)


def check_source(evals: Evals, source: ActivationSource) -> None:
    """`check_evals` for the activations of a source.

    Raises:
        ConfigError: Also if predictions are to be measured where none counts.
    """
    check_evals(evals, ctx_of(source), offers_of(source))
    predicts = any("predictions" in EVALS[name].needs for name in evals)
    if predicts and isinstance(source, LMActivations):
        source.require_predictions()


def make_evals(
    evals: Evals, ctx: int | None, offers: Collection[str] = ()
) -> dict[str, Evaluation]:
    """The evaluations of `check_evals`, ready to run, without those that are not possible."""
    if unknown := sorted(set(evals) - set(EVALS)):
        raise ConfigError(f"eval={unknown} is not known. Choose one of {sorted(EVALS)}.")
    made: dict[str, Evaluation] = {}
    for name, settings in evals.items():
        kind: Any = EVALS[name]
        if kind.takes == "several":
            raise ConfigError(
                f"eval=[{name}] measures several SAEs against each other: "
                f"python evaluate.py 'run=[a,b]' 'eval=[{name}]'."
            )
        made[name] = kind(**settings)
    offered = {*offers, *(["tokens", "predictions"] if ctx is not None else [])}
    possible = {name: made[name] for name in made if made[name].needs <= offered}
    for name, evaluation in possible.items():
        if ctx is not None:
            try:
                evaluation.check_ctx(ctx)
            except ConfigError as error:
                raise ConfigError(f"eval.{name}: {error}") from None
    if made and not possible:
        lacking = set().union(*(made[name].needs for name in made)) - offered
        what = ", and ".join(words for need, words in _NEEDS.items() if need in lacking)
        raise ConfigError(
            f"eval=[{','.join(made)}] needs {what}. "
            "Choose eval=[core], or an SAE trained on such activations."
        )
    return possible


def _joined(evaluations: dict[str, Evaluation], ends: Ends) -> dict[str, Evaluation]:
    """The evaluations that can measure a transcoder or a crosscoder."""
    able = {name: one for name, one in evaluations.items() if one.joined}
    if left_out := sorted(set(evaluations) - set(able)):
        log.warning("Left out: %s. They measure SAEs at one point, not %s.", left_out, ends)
    if evaluations and not able:
        raise ConfigError(
            f"eval=[{','.join(evaluations)}] measures SAEs at one point; this one is at {ends}. "
            "Choose eval=[core,downstream]."
        )
    return able


def offers_of(source: ActivationSource) -> frozenset[str]:
    """Requirements of evaluations that a source meets; see `Evaluation.needs`."""
    if isinstance(source, SuperpositionActivations):
        return frozenset({"truth"})
    return frozenset({"tokens", "predictions"} if isinstance(source, LMActivations) else ())


def ctx_of(source: ActivationSource) -> int | None:
    """Tokens in a context of a source; None where there are no tokens behind the activations."""
    return source.specs["test"].ctx if isinstance(source, LMActivations) else None
