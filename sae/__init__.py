"""Sparse autoencoders on language models: train them, measure them, look at their features.

Names are imported when they are first used, so that `import sae` costs nothing.

    load(path) -> SAE           a saved SAE: run folder, SAE folder, another library's, hub id
    save(path, sae, format)     write one, also for another library
    save_sae(folder, sae)       write one over an older one, as a run does
    push_to_hub(sae, repo_id)   publish one
    to_saebench(sae)            wrap one for SAEBench
    place(run) -> PlacedSAE     a saved SAE with its LM, text and activations
    intervene(lm, *edits)       edit activations while an LM runs or writes
    SAE, SAEConfig              four tensors and how they encode
    Point                       a place in the LM: site and layer
    SAEError                    base of all errors that a user can cause
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae.artifacts import load, push_to_hub, save, save_sae, to_saebench
    from sae.dictionaries.sae import SAE, SAEConfig
    from sae.errors import SAEError
    from sae.evaluation import place
    from sae.interventions import intervene
    from sae.types import Point

_HOMES = {
    "intervene": "sae.interventions",
    "place": "sae.evaluation",
    "load": "sae.artifacts",
    "push_to_hub": "sae.artifacts",
    "save": "sae.artifacts",
    "save_sae": "sae.artifacts",
    "to_saebench": "sae.artifacts",
    "SAE": "sae.dictionaries.sae",
    "SAEConfig": "sae.dictionaries.sae",
    "SAEError": "sae.errors",
    "Point": "sae.types",
}

__all__ = [
    "SAE",
    "Point",
    "SAEConfig",
    "SAEError",
    "intervene",
    "load",
    "place",
    "push_to_hub",
    "save",
    "save_sae",
    "to_saebench",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
