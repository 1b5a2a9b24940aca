"""Rows of tables by decile of the activation and by density."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sae.explanations.study import SCORERS
from sae.explanations.summary import (
    LEAST_IN_BIN,
    LEAST_LATENTS,
    Studies,
    densities,
    values_of,
)
from sae.features.record import DECILES
from sae.metrics.matched import BINS_PER_DECADE, density_bins
from sae.tables import Type

_BY: dict[str, tuple[Type, str]] = {"subject": ("string", ""), "explainer": ("string", "")}
BY_DECILE: dict[str, tuple[Type, str]] = {
    **_BY, "decile": ("int64", ""),
    **{name: ("float64", "") for name in SCORERS if name != "rules"},
}  # fmt: skip
BY_DENSITY: dict[str, tuple[Type, str]] = {
    **_BY, "density": ("float64", "share"), "latents": ("int64", ""),
    **{name: ("float64", "") for name in SCORERS},
}  # fmt: skip


def by_decile(studies: Studies) -> Iterator[dict[str, Any]]:
    """A row for each dictionary, explainer and decile, decile 1 the strongest."""
    names = [name for name in SCORERS if name != "rules"]
    for subject, rows in studies.items():
        for explainer in dict.fromkeys(row.explainer for row in rows):
            own = [row for row in rows if row.explainer == explainer and row.deciles]
            for decile in range(DECILES) if own else ():
                found = {}
                for name in names:
                    values = [row.deciles[name][decile] for row in own if name in row.deciles]
                    values = np.array(values, dtype=np.float64)
                    values = values[np.isfinite(values)]
                    found[name] = float(values.mean()) if len(values) >= LEAST_LATENTS else None
                yield {"subject": subject, "explainer": explainer, "decile": decile + 1, **found}


def by_density(studies: Studies) -> Iterator[dict[str, Any]]:
    """A row for each dictionary, explainer and bin of density."""
    for subject, rows in studies.items():
        for explainer in dict.fromkeys(row.explainer for row in rows):
            own = [row for row in rows if row.explainer == explainer and row.state == "explained"]
            bins = density_bins(densities(own))
            for i in np.unique(bins).tolist():
                part = [row for row, n in zip(own, bins.tolist(), strict=True) if n == i]
                found: dict[str, Any] = {}
                for name in SCORERS:
                    values = values_of(part, name)
                    values = values[np.isfinite(values)]
                    found[name] = float(values.mean()) if len(values) >= LEAST_IN_BIN else None
                yield {
                    "subject": subject, "explainer": explainer,
                    "density": 10 ** (i / BINS_PER_DECADE), "latents": len(part), **found,
                }  # fmt: skip
