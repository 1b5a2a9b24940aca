"""Example embedding: whether excerpts of one strength are alike, without an explanation."""

from collections.abc import Mapping

import numpy as np

from sae.explanations.excerpts import Size
from sae.explanations.scores import LEAST, Bench, Excerpted, Scores, auroc
from sae.features.record import DECILES

ALIKE: dict[Size, str] = {"whole": "example", "near": "example_near"}
"""Name of the score by size of the excerpts."""
NEGATIVES = 100
"""Excerpts without the latent that those of each decile are held against."""


def alike(of: Mapping[Size, Excerpted], bench: Bench, seed: int) -> Scores:
    """AUROC of the cosine to a query: excerpts of its decile against excerpts without the latent.

    Every excerpt of a decile is the query once, the others of the decile are its positives. A score
    is the mean over deciles with two excerpts or more; chance is .5.

    Source: the scorer example_embedding of delphi (Paulo et al. 2024, arXiv 2410.13928), which
    gives the difference of the two cosines.

    Args:
        of: The latent's excerpts.
        bench: The test text and its pool.
        seed: Seed of the latent, which decides the negatives.
    """
    random = np.random.default_rng([bench.seed, seed, 4])
    found = Scores()
    for size, one in of.items():
        silent = np.flatnonzero(one.silent)
        areas = np.full(DECILES, np.nan)
        for decile in range(DECILES) if len(silent) >= LEAST else ():
            own = one.vectors[one.decile == decile]
            if len(own) > 1:
                drawn = random.choice(silent, min(NEGATIVES, len(silent)), replace=False)
                others = own @ bench.pooled[size][drawn].T
                cosines = own @ own.T
                areas[decile] = np.mean([
                    auroc(np.delete(row, i), negative)
                    for i, (row, negative) in enumerate(zip(cosines, others, strict=True))
                ])  # fmt: skip
        there = areas[np.isfinite(areas)]
        found.deciles[ALIKE[size]] = areas
        found.values[ALIKE[size]] = float(there.mean()) if len(there) else float("nan")
    return found
