"""The record of one latent: its firings on a text, summed up, and its weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sae.features.plain import as_html, window, words
from sae.features.shown import NOTHING, Listed, Shown, Text

INTERVALS = 10
"""Intervals of equal width on [0, max] of a latent's activations."""
DECILES = 10
"""Groups of equally many positive activations; decile 1 holds the strongest."""
HISTOGRAM_BINS = 40
"""Bins of equal width on [0, max]."""


@dataclass(frozen=True)
class Summary:
    """The firings of a latent, summed up.

    Attributes:
        firings: Rows on which it fires.
        contexts_fired: Contexts in which it fires.
        max: Its largest activation, in the LM's units.
        mean: Mean of its activations where it fires.
        interval_counts: Firings in each interval, the weakest first.
        decile_edges: Largest activation of decile 1, smallest of decile 1, …, of decile 10.
        histogram: Firings by bin on [0, max] and token: a column for each of `histogram_tokens`,
            the last one for all others.
        histogram_tokens: The tokens that hold most of the activation mass.
        by_mass: Tokens by their share of the sum of activations.
        by_mean: Tokens by the mean activation over their occurrences that count, silent ones
            included; tokens with at least 5 of them.
        positions: Firings by position in the context.
        contexts: Contexts that were kept.
    """

    firings: int
    contexts_fired: int
    max: float
    mean: float
    interval_counts: Int[np.ndarray, " intervals"]
    decile_edges: Float[np.ndarray, " edges"]
    histogram: Int[np.ndarray, "bins columns"]
    histogram_tokens: Int[np.ndarray, " tokens"]
    by_mass: Listed
    by_mean: Listed
    positions: Int[np.ndarray, " ctx"]
    contexts: Sequence[Shown]


@dataclass(frozen=True)
class Record(Summary):
    """A latent on a text. Numbers are exact over all rows that count; contexts are a choice.

    Signed codes (PCA, ICA, neurons) have two records a latent, one of each sign, with the size of
    the activations as values.

    Attributes:
        latent: Number of the latent in the SAE.
        sign: 1, or -1 for the negative side of a signed code.
        density: Share of the rows that count on which it fires.
        co_firing: Latents that fire most often on the same rows, and on how many; empty where not
            computed.
        co_firing_negative: Mask of those that are negative sides; empty for codes without a sign.
        jaccard: Jaccard index of each: rows where both fire as a share of those where either does.
        top_logits: Tokens whose logits the atom raises most (`logit_lens`), and by how much for
            one unit of activation; empty without an LM.
        bottom_logits: Tokens whose logits it lowers most.
        nearest: Latents with the most similar atoms, and the cosines.
        neurons: Basis directions with the largest entries of the atom, by size, and the entries.
        encoder_cosine: Cosine of its encoder direction and its atom.
        stability: Mean over other seeds of the largest cosine with an atom there; None without
            other seeds.
        text: The text; None if it was not kept.
    """

    latent: int
    sign: int
    density: float
    co_firing: Listed = NOTHING
    co_firing_negative: Bool[np.ndarray, " sides"] = field(
        default_factory=lambda: np.zeros(0, bool)
    )
    jaccard: Float[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0))
    top_logits: Listed = NOTHING
    bottom_logits: Listed = NOTHING
    nearest: Listed = NOTHING
    neurons: Listed = NOTHING
    encoder_cosine: float = float("nan")
    stability: float | None = None
    text: Text | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its number, with the sign where the code is signed: `12`, `-12`."""
        return f"{'-' if self.sign < 0 else ''}{self.latent}"

    def as_plain(self, contexts: int = 5) -> dict[str, Any]:
        """The numbers and the strongest contexts as JSON values, tokens as text.

        Args:
            contexts: Number of contexts of the group `top`.

        Returns:
            `latent`, `density`, `max`, `tokens` (pairs of a token and its share of the activation
            mass), `top_logits`, `bottom_logits`, `histogram` (firings by bin on [0, max]) and
            `contexts`: of each `pieces`, the text of the tokens in the window, `values`, their
            activations (None where the row does not count), and `peak`, the index of the maximum.
        """
        text = self.text
        assert text is not None
        top = [one for one in self.contexts if one.group == "top"][:contexts]
        tokens = zip(words(self.by_mass.ids, text), self.by_mass.values.tolist(), strict=True)
        return {
            "latent": self.name,
            "density": self.density,
            "max": self.max,
            "tokens": [list(pair) for pair in tokens],
            "top_logits": words(self.top_logits.ids, text),
            "bottom_logits": words(self.bottom_logits.ids, text),
            "histogram": self.histogram.sum(1).tolist(),
            "contexts": [window(one, text) for one in top],
        }

    def _repr_html_(self) -> str | None:
        """Shown by notebooks."""
        return None if self.text is None else as_html(self.as_plain())
