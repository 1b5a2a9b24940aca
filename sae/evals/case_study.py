"""`case_study`: one latent, from its input to its effect on the output."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from sae.artifacts import load
from sae.artifacts.placed import PlacedSAE, source_of
from sae.errors import ConfigError
from sae.evals.base import Estimate, Evaluation, Measured, refuse_transcoder, register
from sae.features import Record, Records, records
from sae.features.ablated import changes
from sae.features.effects import Effect, ablate, on_last_token, strongest
from sae.features.plain import words
from sae.features.sets import first_latent
from sae.features.upstream import feeding
from sae.settings import setting
from sae.types import Split

log = logging.getLogger(__name__)


@register
class CaseStudyEval(Evaluation):
    """Input, output and intermediate view of a latent (arXiv 2309.08600, section 5).

    Input: where it fires. Output: the mean change of the logits where it fires, when it is set to
    zero and the SAE's error is kept; beside it a step of equal length in a random direction.
    Intermediate: latents of an SAE below that feed it.
    """

    name: ClassVar[str] = "case_study"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "predictions"})
    feature: int | str | None = setting(
        None, help="the latent; -3 is the negative side of 3; a features.json: its first latent; "
        "null: the first that find finds",
    )  # fmt: skip
    find: str = setting("", help="a text; the latents that fire on its last token are listed")
    below: str = setting("", help="run of a lower layer, for the latents that feed this one")
    contexts: int = setting(10, ge=1, le=20, help="strongest contexts that effects are measured on")
    text: Literal["auto", "train", "test"] = setting("test", help="as eval.dashboard.text")
    num_tokens: int = setting(1_000_000, ge=1, help="as eval.dashboard.num_tokens")
    max_density: float = setting(0.1, gt=0, le=1, help="latents that fire more often are not found")

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Study one latent."""
        (one,) = subjects
        refuse_transcoder(one, self.name)
        if self.feature is None and not self.find:
            raise ConfigError(
                "eval.case_study.feature is not given. Give the number of a latent, or a text "
                "(eval.case_study.find='…'): the latent that fires most on its last token is taken."
            )
        asked = None if self.feature is None else first_latent(self.feature, one)
        split = None if self.text == "auto" else self.text
        every = records(one, split=split, num_tokens=self.num_tokens)
        found = self._found(one, every) if self.find else []
        record = self._record(every, asked, found)
        log.info("latent %s, which fires on %.2g of the rows", record.name, record.density)
        contexts = strongest(record, self.contexts)
        effect = ablate(one, one.lm, record, contexts)
        below = self._below(one) if self.below else None
        feeds = [] if below is None else feeding(one, below, one.lm, record, contexts)
        return Measured(
            on=every.facts["split"],
            metrics={
                "density": Estimate(record.density), "max": Estimate(record.max),
                "kl_ablated": Estimate(effect.kl), "kl_random": Estimate(effect.kl_random),
            },
            tokens={
                "tokens": every.facts["tokens"], "contexts": len(contexts.tokens),
                "positions": effect.positions,
            },
            details={
                "latent": record.name,
                "text": every.facts["text"],
                "split": every.facts["split"],
                "found": found,
                "record": record.as_plain(self.contexts),
                "by_token": _by_token(record),
                "logits": _changes(effect, record),
                "below": self.below,
                "feeds": [feed._asdict() for feed in feeds],
            },
        )  # fmt: skip

    def _found(self, one: PlacedSAE, every: Records) -> list[dict[str, Any]]:
        found = []
        for latent, value in on_last_token(one, one.lm, self.find, 50):
            try:
                density = every[latent].density
            except KeyError:  # silent on that text
                density = 0.0
            if density <= self.max_density:
                found.append({"latent": latent, "activation": value, "density": density})
        return found[:10]

    def _record(
        self, every: Records, latent: int | str | None, found: list[dict[str, Any]]
    ) -> Record:
        if latent is None:
            alive = [one["latent"] for one in found if one["density"] > 0]
            if not alive:
                raise ConfigError(
                    f"No latent that fires on at most {self.max_density:.3g} of the rows fires on "
                    f"the last token of eval.case_study.find={self.find!r}. Give another text."
                )
            latent = int(alive[0])
        try:
            return every[latent]
        except KeyError as error:
            raise ConfigError(f"eval.case_study.feature={latent}: {error.args[0]}") from None

    def _below(self, one: PlacedSAE) -> PlacedSAE:
        device = str(one.sae.device)
        sae = load(Path(self.below)).to(device)
        return PlacedSAE(sae, lambda sae: source_of(sae, device=device), self.below)


def _by_token(record: Record) -> dict[str, Any]:
    """The histogram stacked by token."""
    assert record.text is not None
    names = words(record.histogram_tokens, record.text)
    columns = record.histogram.T.tolist()
    return {"tokens": names, "counts": columns[: len(names)], "others": columns[-1]}


def _changes(effect: Effect, record: Record) -> dict[str, list[list[Any]]]:
    assert record.text is not None
    found = {}
    lists = changes(effect, len(record.text.vocabulary))
    for name, top in zip(("lowered", "raised"), lists, strict=True):
        names = words(top.ids, record.text)
        found[name] = [list(pair) for pair in zip(names, top.values.tolist(), strict=True)]
    return found
