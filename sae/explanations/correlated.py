"""Correlations of scores with moments of the activations (arXiv 2309.08600, Table 2)."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sae.explanations.means import Interval, correlation
from sae.explanations.summary import LEAST_LATENTS, Studies, named, parts, values_of
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Type

OF = ("skew", "kurtosis", "log10 density")
CORRELATIONS: dict[str, tuple[Type, str]] = {
    "subject": ("string", ""), "explainer": ("string", ""), "scorer": ("string", ""),
    "of": ("string", ""), "latents": ("int64", ""),
    **{name: ("float64", "correlation") for name in ("value", "low", "high")},
}  # fmt: skip


def correlations(studies: Studies, bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """A row for each dictionary, explainer, scorer and moment: Pearson's r over latents."""
    for subject, rows in studies.items():
        for explainer, scorer, own in parts(rows):
            scores = values_of(own, scorer)
            for name in OF:
                moment = np.array([_moment(row, name) for row in own], dtype=np.float64)
                there = np.isfinite(scores) & np.isfinite(moment)
                if there.sum() < LEAST_LATENTS:
                    continue
                found: Interval = correlation(scores[there], moment[there], bootstrap)
                if found.value is not None:
                    yield {
                        "subject": subject, "explainer": explainer, "scorer": scorer, "of": name,
                        "latents": int(there.sum()), **named("", found),
                    }  # fmt: skip


def _moment(row: Any, name: str) -> float:
    if name == "log10 density":
        return float(np.log10(row.density)) if row.density > 0 else float("nan")
    return getattr(row, name)
