"""`autointerp`: what latents mean, in words, and scores that say how far the words hold."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from sae.artifacts.placed import PlacedSAE
from sae.evals.base import Measured, register
from sae.evals.explaining import ExplainingEval, Wanted
from sae.explanations.files import read_explanations
from sae.explanations.latents import named
from sae.settings import Absolute, setting
from sae.types import Split


@register
class AutointerpEval(ExplainingEval):
    """Explanations of latents in words, and scores of them beside controls.

    Explainers read the training text, scorers the test text. Rules are counted, and a sentence
    encoder compares explanations with excerpts. The LM under study is asked only by `scorers`, a
    chat LM only if its address is given. A scorer stands in the headline only after it told true
    explanations of known classes from another class's (docs/guides/explanations.md).
    """

    name: ClassVar[str] = "autointerp"
    features: tuple[int | str, ...] = setting(
        (), help="latents of the SAE in their place: numbers, or a features.json"
    )
    explanations: Absolute | None = setting(
        None, help="explanations of yours to score: .csv, .jsonl, .json, or delphi's folder"
    )
    controls: tuple[str, ...] = setting(
        (), help="trained controls: runs, or sweeps, with a frozen decoder or of a random LM"
    )
    seeds: tuple[str, ...] = setting(
        (), help="runs of other seeds, whose latents are pooled with the SAE's"
    )

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Explain and score the SAE's latents and those of all controls."""
        (one,) = subjects
        given = None if self.explanations is None else read_explanations(self.explanations)
        features = self._features(one, given)
        return self.explain(one, on, Wanted(features, given, self.controls, self.seeds))

    def _features(self, one: PlacedSAE, given: Mapping[str, str] | None) -> tuple[str, ...]:
        """Names of the latents that were asked for: without any, those of the user's file."""
        if given is not None and not self.features:
            return named(list(given), one, f"{self.where}explanations={self.explanations}")
        return named(self.features, one, f"{self.where}features")
