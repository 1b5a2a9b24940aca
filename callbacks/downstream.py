"""Effect of the SAE on the LM's predictions, watched while it trains."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from callbacks.outputs import log_values
from sae.activations.counted import Counted
from sae.activations.store import ActivationStore
from sae.errors import ConfigError
from sae.evals.predictions import contexts_in, measure
from sae.interventions import Replacement, Spliced
from sae.language import LanguageModel
from sae.types import Ends, Point


class DownstreamPerplexity(L.Callback):
    """Log cross entropy, perplexity, CE recovered and KL on a fixed set of held-out contexts.

    Every time: `val/ce_clean`, `val/ce_sae`, `val/ce_recovered_zero`, `val/ce_recovered_mean`,
    `val/kl`, `val/top1_agreement`, `val/perplexity_clean`, `val/perplexity_sae`. It costs two full
    forward passes over the tokens; the ablated passes are made once for a store, and shared with
    other runs. The LM is loaded at the first measurement, never before.

    Args:
        load_lm: Returns the LM; called once.
        store: Held-out tokens, never training text.
        where: Point where the SAE's reconstruction replaces the activation, or the ends of a
            transcoder or crosscoder.
        mean: Mean vector of these held-out tokens' split, LM units, for mean ablation.
        counted: Rule for the rows that count; the others stay as they are. None: all count.
        num_tokens: Upper limit to the tokens read, whole contexts.
        every_n_validations: Run at every n-th validation only.
        batch_contexts: Contexts per forward pass. Two sets of logits [batch ctx vocab] are held.
        splice: Makes, of the module, the function x -> x_hat [batch ctx d_in] in LM units;
            default: its dictionary, folded into an inference SAE.

    Raises:
        ConfigError: If a number does not fit.
    """

    names = (
        "ce_clean", "ce_sae", "ce_recovered_zero", "ce_recovered_mean", "kl", "top1_agreement",
        "perplexity_clean", "perplexity_sae",
    )  # fmt: skip

    def __init__(
        self,
        load_lm: Callable[[], LanguageModel],
        store: ActivationStore,
        where: Point | Ends,
        mean: Float[Tensor, " width"],
        *,
        counted: Counted | None = None,
        num_tokens: int = 4096,
        every_n_validations: int = 1,
        batch_contexts: int = 8,
        splice: Callable[[L.LightningModule], Replacement] | None = None,
    ) -> None:
        if every_n_validations < 1 or batch_contexts < 1:
            raise ConfigError(
                f"every_n_validations={every_n_validations} and batch_contexts={batch_contexts} "
                "must both be at least 1."
            )
        try:
            contexts_in(num_tokens, store.tokens.shape[1])
        except ConfigError as error:
            raise ConfigError(f"callbacks.downstream: {error}") from None
        self.load_lm, self.store, self.mean, self.counted = load_lm, store, mean, counted
        self.ends = Ends.at(where) if isinstance(where, Point) else where
        self.num_tokens, self.batch_contexts = num_tokens, batch_contexts
        self.every_n_validations = every_n_validations
        self.splice = splice or _folded_dictionary
        self._lm: LanguageModel | None = None
        self._validations = 0

    def state_dict(self) -> dict[str, int]:
        """Validations so far: a resumed run must skip the same ones."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore the count of validations."""
        self._validations = state_dict["validations"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure and log the predictions, at every n-th validation."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            values = self.measure(self.splice(pl_module))
            log_values(pl_module, {f"val/{name}": values[name] for name in self.names})

    def measure(self, splice: Replacement) -> Mapping[str, float | None]:
        """All metrics of `sae.metrics.NextToken` for one function of activations."""
        lm = self._loaded()
        if isinstance(splice, torch.nn.Module):
            splice = splice.to(lm.device)
        metric = measure(
            lm,
            self.store,
            [Spliced(self.ends, splice, self.mean, self.counted)],
            num_tokens=self.num_tokens,
            batch_contexts=self.batch_contexts,
            quiet=True,  # the bar of the training goes on
        )
        return metric.compute()

    def _loaded(self) -> LanguageModel:
        if self._lm is None:
            # Building an LM draws random numbers; training must not see that.
            with torch.random.fork_rng():
                self._lm = self.load_lm()
        return self._lm


def _folded_dictionary(module: L.LightningModule) -> Replacement:
    """The SAE as it would be saved now."""
    module_with_sae: Any = module
    return module_with_sae.dictionary.folded(module_with_sae.scale)
