"""`glimpse`: a few latents with the contexts in which they fire."""

from collections.abc import Sequence
from typing import ClassVar

from sae.artifacts.placed import PlacedSAE
from sae.evals.base import Evaluation, Measured, register
from sae.features.glimpse import BINS, glimpse
from sae.settings import setting
from sae.types import Split


@register
class GlimpseEval(Evaluation):
    """A first look at what was learned: no number, but latents to read (docs/guides/features.md).

    Three latents from each of eight logarithmic bins of density between 1e-4 and 0.1; the hash of
    its number decides which, not an eye.
    """

    name: ClassVar[str] = "glimpse"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    joined: ClassVar[bool] = True
    num_tokens: int = setting(65_536, ge=1, help="tokens that are read, the first of the split")
    per_bin: int = setting(3, ge=1, help=f"latents from each of {BINS} bins of density")
    contexts: int = setting(5, ge=1, help="contexts of each latent")

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Read the first tokens of the split."""
        (one,) = subjects
        found, tokens = glimpse(one, on, num_tokens=self.num_tokens, per_bin=self.per_bin)
        return Measured(
            metrics={},
            tokens={"tokens": tokens},
            details={"latents": [record.as_plain(self.contexts) for record in found]},
        )
