"""From plain configuration to a source of activations."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sae.activations.folder import FolderActivations
from sae.activations.sources import LMActivations
from sae.activations.stream import StreamedActivations
from sae.activations.superposition import SuperpositionActivations
from sae.errors import ConfigError
from sae.language import LMSource, corpus_from_config
from sae.synthetic import World
from sae.types import Point

_LM = (
    "tokens", "val_tokens", "test_tokens", "ctx", "dtype", "seed", "val_fraction",
    "test_fraction", "keep_first", "batch_contexts",
)  # fmt: skip


def lm_activations(
    lm: Mapping[str, Any],
    corpus: Mapping[str, Any],
    point: Point,
    settings: Mapping[str, Any],
    device: str = "cpu",
) -> LMActivations:
    """Activations of an LM over a text.

    Args:
        lm: Configuration of the LM (`LMSource.from_config`).
        corpus: Configuration of the text (`corpus_from_config`).
        point: Where to read.
        settings: Token counts, ctx, dtype, stream and the other settings of
            conf/activations/lm.yaml; what is not for `LMActivations` is passed over.
        device: Where the LM runs.
    """
    chosen = {name: settings[name] for name in _LM if name in settings}
    source, text = LMSource.from_config(lm), corpus_from_config(corpus)
    kind = StreamedActivations if settings.get("stream") else LMActivations
    return kind(source, text, point, device=device, **chosen)


def points_of(activations: Mapping[str, Any]) -> list[Point]:
    """Every combination of the `layer` and `site` values, each a scalar or a list."""
    layers, sites = activations["layer"], activations["site"]
    layers = layers if isinstance(layers, list) else [layers]
    sites = sites if isinstance(sites, list) else [sites]
    return [Point(site, layer) for layer in layers for site in sites]


def build_source(
    activations: Mapping[str, Any], lm: Mapping[str, Any], corpus: Mapping[str, Any],
    device: str = "cpu",
) -> LMActivations | FolderActivations | SuperpositionActivations:  # fmt: skip
    """The source that conf/activations/*.yaml describes, at the first of its points.

    Raises:
        ConfigError: If its kind is unknown.
    """
    kind = activations.get("kind")
    if kind == "lm":
        return lm_activations(lm, corpus, points_of(activations)[0], activations, device)
    if kind == "folder":
        return FolderActivations(
            activations["path"],
            val_fraction=activations["val_fraction"],
            test_fraction=activations["test_fraction"],
        )
    if kind == "superposition":
        return superposition_activations(activations)
    raise ConfigError(
        f"activations.kind={kind!r} is not known. Choose lm, folder or superposition."
    )


def superposition_activations(settings: Mapping[str, Any]) -> SuperpositionActivations:
    """Vectors of the synthetic world that conf/activations/superposition.yaml describes.

    Raises:
        ConfigError: If a setting is out of range or has no effect.
    """
    world = World(**{item.name: settings[item.name] for item in fields(World)})
    counts = {name: settings[name] for name in ("tokens", "val_tokens", "test_tokens")}
    return SuperpositionActivations(world, **counts)
