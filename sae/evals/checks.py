"""Checks of evaluations that edit the activations of an LM."""

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


def _lm(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide which LM it is, whatever its dtype and name."""
    return {name: value for name, value in config.items() if name not in ("dtype", "name")}
