"""Explanations of latents for other pages and formats, out of results of `autointerp`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae.evals.base import EvalResult
from sae.explanations.asking import asks
from sae.explanations.explain import GIVEN
from sae.explanations.explainers import EXPLAINERS
from sae.explanations.latents import index_of
from sae.explanations.summary import SAE
from sae.features.parts import Explained, Explanations
from sae.reports.results import newest_latents

_NO_LM = "none"
"""Name of the LM of explanations that no LM wrote."""


def explanation_columns(result: EvalResult, folder: Path) -> dict[str, dict[str, float | str]]:
    """A column for the table of a dashboard, from the newest result `autointerp` of the same SAE.

    Args:
        result: Result of another evaluation of the SAE.
        folder: Folder that holds results.

    Returns:
        Explanations by heading and latent; empty without such a result.
    """
    _, rows = newest_latents("autointerp", result, folder)
    own = [row for row in own_latents(rows) if row["explanation"]]
    explainers = [row["explainer"] for row in own]
    best = GIVEN if GIVEN in explainers else next(iter(explainers), "")  # the user's own, if any
    found = {row["latent"]: row["explanation"] for row in own if row["explainer"] == best}
    return {"explanation": found} if found else {}


def explanations_of(result: EvalResult, folder: Path, d_sae: int) -> Explanations:
    """All explanations of the SAE's latents, of the newest result `autointerp`, for exports.

    Args:
        result: Result of another evaluation of the SAE.
        folder: Folder of the results.
        d_sae: Number of latents.
    """
    content, rows = newest_latents("autointerp", result, folder)
    chat = ((content.get("details") or {}).get("chat") or {}).get("model", "")
    found: dict[int, list[Explained]] = {}
    for row in own_latents(rows):
        if row["explanation"]:
            asked = row["explainer"] in EXPLAINERS and asks(row["explainer"])
            model = chat if asked and chat else _NO_LM
            one = Explained(row["explanation"], row["explainer"], model)
            found.setdefault(index_of(row["latent"], d_sae), []).append(one)
    return found


def own_latents(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The latents of the SAE itself, without those of its other seeds."""
    return [row for row in rows if row["subject"] == SAE and not row.get("seed")]
