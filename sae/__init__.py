"""Sparse autoencoders on language models: train them, measure them, look at their features.

Names are imported when they are first used, so that `import sae` costs nothing.

    load(path) -> SAE           a saved SAE, by run folder or SAE folder
    save_sae(folder, sae)       write one
    SAE, SAEConfig              four tensors and how they encode
    Point                       a place in the LM: site and layer
    SAEError                    base of all errors that a user can cause
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sae.artifacts import load, save_sae
    from sae.dictionaries.sae import SAE, SAEConfig
    from sae.errors import SAEError
    from sae.types import Point

_HOMES = {
    "load": "sae.artifacts",
    "save_sae": "sae.artifacts",
    "SAE": "sae.dictionaries.sae",
    "SAEConfig": "sae.dictionaries.sae",
    "SAEError": "sae.errors",
    "Point": "sae.types",
}

__all__ = ["SAE", "Point", "SAEConfig", "SAEError", "load", "save_sae"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
