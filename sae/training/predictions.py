"""Check before a long training that the LM's own predictions are finite."""

from collections.abc import Mapping
from typing import Any

import torch

from sae.activations.sources import ActivationSource, LMActivations
from sae.errors import SourceError
from sae.types import Point

_CONTEXTS = 8


def check_predictions(source: ActivationSource, config: Mapping[str, Any]) -> None:
    """Find out whether the LM predicts anything, if training or evaluation will ask it to.

    A float16 LM is run to its end on a few contexts: its activations at the site may be fine where
    a layer above it overflows. Other dtypes have the range of float32 and are not checked, so that
    a cached run does not load its LM for this.

    Args:
        source: Prepared.
        config: The whole configuration.

    Raises:
        ConfigError: If contexts are too short for a prediction.
        SourceError: If a logit is NaN or infinite; names the lowest layer that overflows.
    """
    watched = "downstream" in config["callbacks"] or config.get("e2e") is not None
    if not isinstance(source, LMActivations) or not (watched or "downstream" in config["eval"]):
        return
    source.require_predictions()
    if source.source.to_config().get("dtype") != "float16":
        return
    lm = source.load_lm(source.device)
    tokens = torch.from_numpy(source.store("test").tokens[:_CONTEXTS]).long().to(lm.device)
    for context in tokens.split(1):
        if not bool(lm.logits(context).isfinite().all()):
            raise SourceError(
                f"{lm.name} in float16 predicts NaN or infinite values{_overflowing(lm, context)}. "
                "Use lm.dtype=float32 or bfloat16."
            )


def _overflowing(lm: Any, context: torch.Tensor) -> str:
    points = [Point("resid", layer) for layer in range(lm.num_layers)]
    found = lm.capture(context, points)
    layer = next((p.layer for p in points if not bool(found[p].isfinite().all())), None)
    return "" if layer is None else f": layer {layer} exceeds what float16 can hold (65504)"
