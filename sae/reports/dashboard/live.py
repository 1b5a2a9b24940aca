"""Actions of a served dashboard: latents on a text, and the effect of ablating one."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.features import own_text
from sae.features.ablated import ablated
from sae.features.records import Records
from sae.reports.dashboard.own_text import packed_text, packed_vocabulary
from sae.reports.dashboard.server import Action
from sae.reports.dashboard.writer import packed_effect


def actions(one: PlacedSAE, records: Records) -> dict[str, Action]:
    """Actions of the server by address; LM and SAE are loaded here.

    Args:
        one: The SAE.
        records: Its records.
    """
    _ = one.lm, one.sae, records.decile_edges, records.text  # now, not at the first question

    def text(question: Mapping[str, Any]) -> Mapping[str, Any]:
        given = question.get("text")
        if not isinstance(given, str):
            raise ConfigError("There is no text. Send one.")
        return packed_text(own_text.read(one, own_text.write(one, given)), records)

    def ablate(question: Mapping[str, Any]) -> Mapping[str, Any]:
        name = question.get("latent")
        if not isinstance(name, str) or name not in names:
            raise ConfigError("No latent of that number fires on the text of the records.")
        effect = ablated(one, records, [name])[name]
        ids = np.unique(np.concatenate([effect.lowered.ids, effect.raised.ids]))
        return {**packed_effect(effect), "vocabulary": packed_vocabulary(ids, records)}

    names = set(records.latents)
    can = one.point is not None
    return {"/live/text": text} | ({"/live/ablate": ablate} if can else {})
