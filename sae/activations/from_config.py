"""From plain configuration to a source of activations."""

from collections.abc import Mapping
from typing import Any

from sae.activations.folder import FolderActivations
from sae.activations.settings import KINDS, FolderSettings, SuperpositionSettings
from sae.activations.sources import LMActivations
from sae.activations.stream import StreamedActivations
from sae.activations.superposition import SuperpositionActivations
from sae.errors import ConfigError
from sae.language import LMSource, corpus_from_config
from sae.types import Ends, Point

_COMPUTED = ("attn_z", "attn_out", "mlp_in", "mlp", "mlp_out", "resid")
"""Sites of a layer in the order in which the LM computes them."""
_LM = (
    "tokens", "val_tokens", "test_tokens", "ctx", "dtype", "seed", "val_fraction",
    "test_fraction", "keep_first", "special", "max_norm", "norm_limits", "median_of",
    "batch_contexts",
)  # fmt: skip


def lm_activations(
    lm: Mapping[str, Any],
    corpus: Mapping[str, Any],
    where: Point | Ends,
    settings: Mapping[str, Any],
    device: str = "cpu",
) -> LMActivations:
    """Activations of an LM over a text.

    Args:
        lm: Configuration of the LM (`LMSource.from_config`).
        corpus: Configuration of the text (`corpus_from_config`).
        where: The point to read, or the ends of a transcoder or crosscoder.
        settings: Token counts, ctx, dtype, stream and the other settings of
            the node `activations`; what is not for `LMActivations` is passed over.
        device: Device of the LM.
    """
    chosen = {name: settings[name] for name in _LM if name in settings}
    source, text = LMSource.from_config(lm), corpus_from_config(corpus)
    kind = StreamedActivations if settings.get("stream") else LMActivations
    return kind(source, text, where, device=device, **chosen)


def points_of(activations: Mapping[str, Any]) -> list[Point]:
    """Every combination of `layer` and `site`, each a scalar or a list, and `target` a layer."""
    layers, sites = activations["layer"], activations["site"]
    layers = layers if isinstance(layers, list) else [layers]
    sites = list(sites) if isinstance(sites, list) else [sites]
    if (target := activations.get("target")) is not None and target not in sites:
        sites.append(target)
    return [Point(site, layer) for layer in layers for site in sites]


def ends_of(activations: Mapping[str, Any]) -> Ends:
    """Points where the SAE of a run reads and writes; several layers are those of a crosscoder.

    Raises:
        ConfigError: If `target` does not come after `site`.
    """
    target = activations.get("target")
    if target is None:
        return Ends.at(*points_of(activations))
    reads = points_of({**activations, "target": None})
    for point in reads:
        if _COMPUTED.index(target) <= _COMPUTED.index(point.site):
            later = ", ".join(_COMPUTED[_COMPUTED.index(point.site) + 1 :]) or "none"
            raise ConfigError(
                f"target={target} does not come after site={point.site} in the LM. After it in "
                f"the same layer: {later}. An SAE of one site needs no target."
            )
    return Ends(tuple(reads), tuple(Point(target, point.layer) for point in reads))


def build_source(
    activations: Mapping[str, Any], lm: Mapping[str, Any], corpus: Mapping[str, Any],
    device: str = "cpu",
) -> LMActivations | FolderActivations | SuperpositionActivations:  # fmt: skip
    """The source that the node `activations` describes.

    Raises:
        ConfigError: If its kind is unknown.
    """
    kind = activations.get("kind")
    if kind == "lm":
        return lm_activations(lm, corpus, ends_of(activations), activations, device)
    own = KINDS.build(activations)
    if isinstance(own, SuperpositionSettings):
        counts = {name: getattr(own, name) for name in ("tokens", "val_tokens", "test_tokens")}
        return SuperpositionActivations(own.world, **counts, max_norm=own.max_norm)
    assert isinstance(own, FolderSettings)
    return FolderActivations(
        own.path, val_fraction=own.val_fraction, test_fraction=own.test_fraction,
        max_norm=own.max_norm,
    )  # fmt: skip
