"""Checks of evaluations that need an LM or its texts."""

from collections.abc import Mapping
from typing import Any

from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.base import refuse_transcoder
from sae.provenance import content_key


def require_place(one: PlacedSAE, name: str) -> None:
    """Refuse an SAE that does not read and write one point of the LM that it was trained on.

    Args:
        one: The SAE.
        name: Name of the evaluation.

    Raises:
        ConfigError: If it is a transcoder, of a folder of activations, or of another LM.
    """
    refuse_transcoder(one, name)
    if not isinstance(one.source, LMActivations) or one.point is None:
        where = "a folder of activations" if one.ends is None else one.ends
        raise ConfigError(
            f"eval={name} edits one point of an LM, and this SAE is of {where}. Choose an SAE "
            "that reads and writes one point."
        )
    trained: Any = one.sae.metadata.get("activations") or {}
    known = (trained.get("identities") or {}).get("lm")
    same = known == content_key(one.source.specs["test"].lm)
    differs = "lm" in trained and not same
    if differs and _lm(trained["lm"]) != _lm(one.source.source.to_config()):
        raise ConfigError(
            f"This SAE was trained on {trained['lm'].get('name')}, and the LM is "
            f"{one.source.source.name}: its latents mean nothing there. Leave lm= out."
        )


def require_training_text(one: PlacedSAE, name: str) -> None:
    """Refuse an SAE whose training text is not known, or of which no text was left for training.

    Args:
        one: The SAE.
        name: Name of the evaluation.

    Raises:
        ConfigError: If it is of no LM, or is measured on a text that is test text alone.
    """
    if not isinstance(one.source, LMActivations):
        raise ConfigError(
            f"eval={name} needs the tokens behind the activations. Choose an SAE of an LM's "
            "activations."
        )
    spec = one.source.specs["train"]
    if spec.val_fraction + spec.test_fraction >= 1:
        raise ConfigError(
            f"eval={name} explains latents from the training text and scores on the test text; "
            f"all of {one.source.corpus.name} is test text. Leave corpus= out."
        )


def _lm(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide which LM it is, whatever its dtype and name."""
    return {name: value for name, value in config.items() if name not in ("dtype", "name")}
