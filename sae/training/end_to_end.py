"""End-to-end training: the loss is what the SAE does to the LM's predictions (arXiv 2405.12241)."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae import functional
from sae.activations.contexts import ContextBatch
from sae.activations.counted import Counted
from sae.dictionaries.base import Dictionary
from sae.dictionaries.step import StepOutput
from sae.interventions import Positions, note
from sae.language import LanguageModel
from sae.settings import Settings, setting
from sae.training.module import SAEModule
from sae.training.ranks import sum_over_ranks
from sae.types import Ends, Point


class EndToEndSettings(Settings):
    """Minimised: `weight` times the loss of the predictions, and the architecture's other terms."""

    where = "e2e."

    loss: Literal["kl", "ce"] = setting(
        "kl",
        help="kl: KL(clean || spliced) in nats, a mean over the predictions that count; ce: cross "
        "entropy of the spliced LM",
    )
    weight: float = setting(1.0, gt=0, help="weight of that loss")
    reconstruction: float = setting(
        0.0, ge=0, help="weight of the squared error that other training minimises"
    )


class EndToEndModule(SAEModule):
    """Trains a `Dictionary` by the predictions of an LM into which it is spliced.

    A step runs the frozen LM twice over some contexts of the training text: as it is, which gives
    the activations and the predictions to be kept, and with the reconstruction in place of the
    activation. Gradients flow through the upper layers and reach the SAE alone. Position 0 (unless
    `keep_first`) and rows that do not count stay as they are and have no weight, and neither do
    predictions made there or across documents.

    All else (schedules, counters, resampling, checkpoints, validation) is that of `SAEModule`.

    Args:
        dictionary: The dictionary to train.
        ends: Points where it reads and writes.
        load_lm: Gives the LM on a device; called in the first step.
        settings: Weights of the losses.
        keep_first: True if position 0 is encoded and replaced like the others.
        counted: Rule for the rows that count; None: all.
        more: Arguments of `SAEModule`.
    """

    reconstructs = False

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        ends: Ends,
        load_lm: Callable[[str], LanguageModel],
        settings: EndToEndSettings,
        keep_first: bool = False,
        counted: Counted | None = None,
        **more: Any,
    ) -> None:
        super().__init__(dictionary, **more)
        self.ends, self.settings = ends, settings
        self.positions = Positions(ends, counted, keep_first)
        self._load_lm = load_lm

    @cached_property
    def lm(self) -> LanguageModel:
        """The LM; no part of the module, so that no checkpoint holds it."""
        device = self.device.type if not self.device.index else str(self.device)
        with torch.random.fork_rng():  # building an LM draws random numbers
            return self._load_lm(device)

    def output(self, batch: ContextBatch) -> tuple[Float[Tensor, "batch width"], StepOutput]:
        """The scaled activations of the contexts' rows that count, and the losses."""
        clean, x, counts = self._clean(batch.tokens)
        self._num_rows = sum_over_ranks(counts.sum())
        output = self.dictionary.training_output(x, self._state())
        _, x_hat = self._in_lm_units(x, output.x_hat)
        spliced = self._spliced(batch.tokens, x_hat)
        mask = functional.prediction_mask(batch.document, keep_first=self.positions.keep_first)
        mask = mask & counts[:, :-1]
        if self.settings.loss == "kl":
            loss = functional.kl_divergence(clean[:, :-1][mask], spliced[:, :-1][mask]).mean()
        else:
            loss = functional.next_token_cross_entropy(spliced, batch.tokens, mask).mean()
        terms = {self.settings.loss: self.settings.weight * loss, **output.terms}
        error = terms.pop("reconstruction")
        if self.settings.reconstruction:
            terms["reconstruction"] = self.settings.reconstruction * error
        return x, output._replace(terms=terms)

    def _clean(
        self, tokens: Tensor
    ) -> tuple[Tensor, Float[Tensor, "rows width"], Bool[Tensor, "batch ctx"]]:
        """The LM's own logits, its activations that count, scaled, and where these are."""
        seen: dict[Point, Tensor] = {}
        self.positions.start(tokens)
        looks = {point: self.positions.note(point, note(point, seen)) for point in self.ends.points}
        with torch.autocast(self.device.type, enabled=False):  # the activations of a harvest
            logits = self.lm.logits(tokens, looks)
        parts = [seen[point].float() for point in self.ends.points]
        counts = self.positions.replaced()
        return logits, torch.cat(parts, dim=-1)[counts] * self.scale, counts

    def _spliced(self, tokens: Tensor, x_hat: Float[Tensor, "rows width"]) -> Tensor:
        """Logits with the reconstruction in place of the activations that count at all points."""
        parts = x_hat.chunk(len(self.ends.writes), dim=-1)  # layers are equally wide
        replace = dict(zip(self.ends.writes, map(self.positions.rows, parts), strict=True))
        with torch.autocast(self.device.type, enabled=False):
            return self.lm.differentiable_logits(tokens, replace)
