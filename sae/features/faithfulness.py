"""FADE's faithfulness: whether text that an LM writes while a latent is pushed has its concept."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from sae.features.steering import Arm
from sae.features.written import Pen

FACTORS = (-50.0, -10.0, -1.0, 1.0, 10.0, 50.0)
"""Pushes in units of a latent's largest activation, as FADE has them."""
Judging = Callable[[Sequence[str]], Float[np.ndarray, " texts"]]
"""Probability of the concept for each text, as `sae.probing.judge.Judge` gives it."""
Rated = Bool[np.ndarray, "*sizes draws openings"]


class Faithfulness(NamedTuple):
    """Scores of a latent; NaN where the LM writes of nothing else by itself.

    Args:
        value: (r(m) - r(0)) / (1 - r(0)), r the share of texts that have the concept under a push
            m. One half of the openings chooses m, the other half gives r, so that a latent without
            an effect is not above 0 in the mean.
        published: max(0, max over m of r(m) - r(0)) / (1 - r(0)) on all openings, as FADE has it.
            The maximum of noise is above 0.
        factor: The chosen m.
    """

    value: float
    published: float
    factor: float


class PushedTexts:
    """Texts under pushes of a latent, and how many of them have a concept.

    Args:
        pen: Writes after neutral openings.
        factors: Pushes in units of a latent's largest activation.
    """

    def __init__(self, pen: Pen, factors: Sequence[float]):
        self._pen, self._factors = pen, factors
        self._clean = pen.texts(None, [0.0])

    def faithfulness(
        self, judge: Judging, direction: Float[Tensor, " d"], largest: float
    ) -> Faithfulness:
        """Push a latent by each factor and rate what is written.

        Args:
            judge: Says which texts have the concept.
            direction: The latent's row of the decoder, in the LM's units.
            largest: Its largest activation.
        """
        unit = largest * float(direction.float().norm())
        sizes = [factor * unit for factor in self._factors]
        written = self._pen.texts(Arm("pushed", direction), sizes)
        return faithfulness(_rated(judge, written), _rated(judge, self._clean)[0], self._factors)


def faithfulness(
    rated: Bool[np.ndarray, "factors draws openings"],
    clean: Bool[np.ndarray, "draws openings"],
    factors: Sequence[float],
) -> Faithfulness:
    """Scores from which texts have the concept.

    Source: FADE (Puri et al. 2025, arXiv 2502.16994).

    Args:
        rated: Texts under each push.
        clean: Texts that the LM writes by itself.
        factors: The pushes.

    Example:
        >>> always = np.ones((1, 1, 4), bool)
        >>> faithfulness(always, np.array([[True, True, False, False]]), [10.0])
        Faithfulness(value=1.0, published=1.0, factor=10.0)
    """
    chosen = int(rated[:, :, ::2].mean((1, 2)).argmax())
    reported, base = rated[chosen, :, 1::2].mean(), clean[:, 1::2].mean()
    most = rated.mean((1, 2)).max()
    return Faithfulness(
        _gained(float(reported), float(base)),
        float(np.maximum(0, _gained(float(most), float(clean.mean())))),
        factors[chosen],
    )


def _gained(rate: float, base: float) -> float:
    return (rate - base) / (1 - base) if base < 1 else float("nan")


def _rated(judge: Judging, texts: Sequence[Sequence[Sequence[str]]]) -> Rated:
    listed = [text for of_size in texts for of_draw in of_size for text in of_draw]
    shape = len(texts), len(texts[0]), len(texts[0][0])
    return (judge(listed) > 0.5).reshape(shape)
