"""Baselines: dictionaries that are fitted without gradients, to stand beside SAEs on every axis.

Every module of this folder is imported here, so a new baseline is one new file.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

from sae.dictionaries.baselines.base import (  # noqa: E402
    BASELINES,
    Baseline,
    Learned,
    Vectors,
    build_baseline,
    register,
)

__all__ = ["BASELINES", "Baseline", "Learned", "Vectors", "build_baseline", "register"]
