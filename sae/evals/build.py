"""Run evaluations by their words on a saved SAE."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sae.activations.build import lm_activations
from sae.activations.folder import FolderActivations
from sae.activations.sources import ActivationSource, LMActivations
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError, ConfigError
from sae.evals import EVALS
from sae.evals.base import Bootstrap, EvalContext, EvalResult
from sae.types import Point


def run_evals(
    sae: SAE, source: ActivationSource, evals: Mapping[str, Mapping[str, Any]], device: str = "cpu"
) -> dict[str, EvalResult]:
    """Run evaluations on the test split of a prepared source.

    Args:
        sae: What is evaluated.
        source: Where its activations come from.
        evals: Settings by the word of the evaluation; `downstream` is left out where the source
            has no tokens.
        device: Where the SAE and the LM compute.

    Raises:
        ConfigError: If a word is unknown or a setting does not fit.
    """
    if unknown := sorted(set(evals) - set(EVALS)):
        raise ConfigError(f"eval={unknown} is not known. Choose of {sorted(EVALS)}.")
    of_lm = source if isinstance(source, LMActivations) else None
    context = EvalContext(
        sae=sae.to(device),
        point=of_lm.point if of_lm else Point("resid", 0),
        rows=source.split("test"),
        store=of_lm.store("test") if of_lm else None,
        load_lm=cache(lambda: of_lm.source.load(device)) if of_lm else None,  # pyright: ignore
    )
    results = {}
    for word, settings in evals.items():
        if word == "downstream" and of_lm is None:
            continue
        given = {k: v for k, v in settings.items() if k != "resamples"}
        bootstrap = Bootstrap(num_resamples=settings.get("resamples", 1000))
        results[word] = EVALS[word](bootstrap=bootstrap, **given).run(context)
    return results


def source_of(
    sae: SAE, *, lm: Mapping[str, Any] | None = None, corpus: Mapping[str, Any] | None = None,
    tokens: int | None = None, device: str = "cpu",
) -> ActivationSource:  # fmt: skip
    """The source whose test split measures a saved SAE: its own, or another LM or text.

    The documents that are held out for testing never were training documents. Another text was
    never trained on, so all of it counts as test text.

    Args:
        sae: Loaded SAE; its metadata say where its activations came from.
        lm: Configuration of another LM.
        corpus: Configuration of another text.
        tokens: Test tokens, default as in training.
        device: Where the LM runs.

    Raises:
        ArtifactError: If the SAE does not say where its activations came from.
    """
    made_of = sae.metadata.get("activations")
    if not isinstance(made_of, Mapping) or made_of.get("kind") not in ("lm", "folder"):
        raise ArtifactError(
            "This SAE's config.json does not say which activations it was trained on "
            "(metadata.activations), so there is nothing to measure it on."
        )
    if made_of["kind"] == "folder":
        if lm or corpus or tokens:
            raise ConfigError(
                f"This SAE was trained on the folder {made_of['path']}; lm=, corpus= and tokens= "
                "have no effect on it."
            )
        fractions = {name: made_of[name] for name in ("val_fraction", "test_fraction")}
        return FolderActivations(made_of["path"], **fractions)
    counts = made_of["tokens"]
    settings = {
        **made_of, "tokens": counts["train"], "val_tokens": counts["val"],
        "test_tokens": tokens or counts["test"],
    }  # fmt: skip
    if corpus is not None and dict(corpus) != dict(made_of["corpus"]):
        settings |= {"val_fraction": 0.0, "test_fraction": 1.0}
    return lm_activations(
        lm or made_of["lm"], corpus or made_of["corpus"], Point.parse(made_of["point"]),
        settings, device,
    )  # fmt: skip
