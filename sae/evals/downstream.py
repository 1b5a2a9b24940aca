"""`downstream`: how the LM's predictions change when the SAE's reconstruction is spliced in."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.base import Measured, Resampled, estimates, register
from sae.settings import setting
from sae.types import Split


@register
class DownstreamEval(Resampled):
    """Cross entropy clean, spliced, zero- and mean-ablated; CE recovered, KL, perplexity, top 1.

    Reads the first contexts of the split. Under no condition replaced are the activations of
    position 0, unless the store was made with `keep_first`, and those of rows that do not count;
    predictions made there do not count either.
    """

    name: ClassVar[str] = "downstream"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "predictions"})
    joined: ClassVar[bool] = True
    takes: ClassVar[Literal["one", "several", "both"]] = "both"
    num_tokens: int = setting(
        16_384, ge=1, help="upper limit to the tokens read; each costs up to four LM passes"
    )
    batch_contexts: int = setting(
        16, ge=1, help="contexts in one forward pass; decides memory and speed"
    )

    def check_ctx(self, ctx: int) -> None:
        """Refuse settings that contexts of `ctx` tokens cannot serve."""
        from sae.evals.predictions import contexts_in

        contexts_in(self.num_tokens, ctx)

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure on the first contexts of the split.

        Several SAEs are spliced in at once, each at its own point of the same text.
        """
        from sae.evals.predictions import contexts_in, measure  # torchmetrics takes seconds

        first, store = subjects[0], subjects[0].store(on)
        if store is None or any(one.ends is None for one in subjects):
            raise ConfigError(
                "eval=downstream needs the tokens behind the activations; a folder of activations "
                "has none. Use activations harvested from an LM, or eval=core."
            )
        metric = measure(
            first.lm, store, [one.spliced(on) for one in subjects],
            num_tokens=self.num_tokens, batch_contexts=self.batch_contexts,
        )  # fmt: skip
        num_contexts = min(len(store.tokens), contexts_in(self.num_tokens, store.tokens.shape[1]))
        tokens, made = num_contexts * store.tokens.shape[1], metric.num_rows()
        documents = len(np.unique(store.document[:num_contexts]))
        eligible = metric.num_eligible()
        first_positions = 0 if store.spec.keep_first else num_contexts
        return Measured(
            metrics=estimates(metric.compute(), metric.intervals(**self.bootstrap.model_dump())),
            tokens={"tokens": tokens, "predictions": made, "documents": documents},
            details={
                "resampled_units": metric.num_units(),
                "left_out": {
                    "position_0": first_positions,
                    "context_end": num_contexts,
                    "document_border": tokens - eligible - num_contexts - first_positions,
                    "not_counted": eligible - made,
                },
            },
        )
