"""Dictionaries: trainable architectures (one file each) and the inference SAE.

Every module of this folder is imported here, so a new architecture is one new file.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from sae.dictionaries.base import (  # noqa: E402
    ARCHITECTURES,
    Dictionary,
    StepOutput,
    register,
)
from sae.dictionaries.from_config import build_dictionary  # noqa: E402
from sae.dictionaries.sae import SAE, SAEConfig  # noqa: E402

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "Dictionary",
    "SAEConfig",
    "StepOutput",
    "build_dictionary",
    "register",
]
