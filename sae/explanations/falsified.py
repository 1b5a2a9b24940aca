"""Rows of tables about rules that changed texts tested, and whether testing made better ones."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sae.explanations.means import mean
from sae.explanations.study import Row
from sae.explanations.tested import TESTED
from sae.metrics.bootstrap import Bootstrap
from sae.tables import Table, Type

PARTS = (
    "necessity", "necessity_silent", "necessity_same", "necessity_near",
    "sensitivity", "sensitivity_random", "sensitivity_deranged", "falsified",
)  # fmt: skip
FALSIFIED: dict[str, tuple[Type, str]] = {
    "subject": ("string", ""), "explainer": ("string", ""), "rules": ("int64", ""),
    **dict.fromkeys(PARTS, ("float64", "share")),
}  # fmt: skip
ROUND: dict[str, tuple[Type, str]] = {
    "score": ("string", ""), "latents": ("int64", ""),
    **dict.fromkeys(("rules", TESTED, "difference", "low", "high"), ("float64", "")),
}  # fmt: skip
_COMPARED = ("rules", "embedding", "embedding_near", "necessity", "sensitivity", "falsified")


def tables(
    studies: Mapping[str, Sequence[Row]], own: Sequence[Row], bootstrap: Bootstrap
) -> dict[str, Table]:
    """The tables by name.

    Args:
        studies: Rows of all dictionaries.
        own: Rows of the SAE.
        bootstrap: Over latents.
    """
    return {
        "falsified": Table.of(FALSIFIED, list(falsified_rows(studies))),
        "round": Table.of(ROUND, list(round_rows(own, bootstrap))),
    }


def falsified_rows(studies: Mapping[str, Sequence[Row]]) -> Iterator[dict[str, Any]]:
    """A row for each dictionary and explainer whose rules were tested: means over latents."""
    for subject, rows in studies.items():
        for explainer in dict.fromkeys(row.explainer for row in rows):
            own = [row for row in rows if row.explainer == explainer]
            tested = [row for row in own if np.isfinite(row.values.get("falsified", np.nan))]
            if tested:
                yield {
                    "subject": subject, "explainer": explainer, "rules": len(tested),
                    **{name: _mean([row.values.get(name, np.nan) for row in tested])
                       for name in PARTS},
                }  # fmt: skip


def changed(rows: Sequence[Row]) -> dict[str, int] | None:
    """Latents that have a rule, and how many got another one by testing; None without a test."""
    pairs = _pairs(rows)
    if not any(row.explainer == TESTED for row in rows):
        return None
    return {
        "latents": len(pairs),
        "changed": sum(one.explanation != other.explanation for one, other in pairs),
    }


def round_rows(rows: Sequence[Row], bootstrap: Bootstrap) -> Iterator[dict[str, Any]]:
    """A row for each score on the test text: the rules that testing changed, before and after.

    Args:
        rows: Rows of the SAE.
        bootstrap: Over these latents.
    """
    pairs = [(one, other) for one, other in _pairs(rows) if one.explanation != other.explanation]
    for name in _COMPARED:
        before, after = (
            np.array([pair[side].values.get(name, np.nan) for pair in pairs]) for side in (0, 1)
        )
        there = np.isfinite(before) & np.isfinite(after)
        if there.any():
            found = mean(after[there] - before[there], bootstrap)
            yield {
                "score": name, "latents": int(there.sum()), "rules": float(before[there].mean()),
                TESTED: float(after[there].mean()), "difference": found.value, "low": found.low,
                "high": found.high,
            }  # fmt: skip


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of a latent by `rules` and by `tested`, where both have a rule."""
    by_counting, by_testing = (
        {row.latent: row for row in rows if row.explainer == name and row.state == "explained"}
        for name in ("rules", TESTED)
    )
    return [(by_counting[name], by_testing[name]) for name in by_counting if name in by_testing]


def _mean(values: Sequence[float]) -> float | None:
    there = np.array(values)[np.isfinite(values)]
    return float(there.mean()) if len(there) else None
