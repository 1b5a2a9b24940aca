"""What the SAE does to the LM's predictions, watched while it trains."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from callbacks.outputs import log_values
from sae.errors import ConfigError
from sae.evals.base import SplicedLM
from sae.evals.downstream import mean_ablation
from sae.metrics import NextToken
from sae.types import Point

Splice = Callable[[Tensor], Tensor]


class DownstreamPerplexity(L.Callback):
    """Log cross entropy, perplexity, CE recovered and KL on a fixed set of held-out contexts.

    Every time: `val/ce_clean`, `val/ce_sae`, `val/ce_recovered_zero`, `val/ce_recovered_mean`,
    `val/kl`, `val/perplexity_clean`, `val/perplexity_sae`. It costs two full forward passes over
    the tokens; the ablated passes are made once, the first time. The LM is loaded at that moment,
    never before.

    Args:
        load_lm: Returns the LM; called once.
        tokens: Held-out contexts, never training text.
        document: Document id of every token.
        point: Where the SAE's reconstruction takes the activation's place.
        keep_first: Replace position 0 and count its prediction.
        every_n_validations: Run at every n-th validation only.
        batch_contexts: Contexts per forward pass. Four sets of logits [batch ctx vocab] are held.
        mean: `[d_in]` training mean for mean ablation, LM units; default: the datamodule's.
        splice: Makes, of the module, the function x -> x_hat [batch ctx d_in] in LM units;
            default: its dictionary, folded into an inference SAE.

    Raises:
        ConfigError: If the contexts or a number do not fit.
    """

    names = (
        "ce_clean", "ce_sae", "ce_recovered_zero", "ce_recovered_mean", "kl", "perplexity_clean",
        "perplexity_sae",
    )  # fmt: skip

    def __init__(
        self,
        load_lm: Callable[[], SplicedLM],
        tokens: Int[np.ndarray, "contexts ctx"],
        document: Int[np.ndarray, "contexts ctx"],
        point: Point,
        *,
        keep_first: bool = False,
        every_n_validations: int = 1,
        batch_contexts: int = 8,
        mean: Float[Tensor, " d_in"] | None = None,
        splice: Callable[[L.LightningModule], Splice] | None = None,
    ) -> None:
        if tokens.shape != document.shape or not len(tokens):
            raise ConfigError(
                f"tokens {tokens.shape} and document {document.shape} must have the same shape "
                "[contexts ctx], with at least one context."
            )
        if every_n_validations < 1 or batch_contexts < 1:
            raise ConfigError(
                f"every_n_validations={every_n_validations} and batch_contexts={batch_contexts} "
                "must both be at least 1."
            )
        self.load_lm, self.point, self.keep_first = load_lm, point, keep_first
        self.every_n_validations, self.batch_contexts = every_n_validations, batch_contexts
        self.mean, self.splice = mean, splice or _folded_dictionary
        self._tokens, self._document = torch.tensor(tokens).long(), torch.tensor(document).long()
        self._metric = NextToken(keep_first=keep_first)
        self._ablations: dict[str, Tensor] = {}
        self._lm: SplicedLM | None = None
        self._validations = 0

    def state_dict(self) -> dict[str, int]:
        """Validations so far: a resumed run must skip the same ones."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take up the count."""
        self._validations = state_dict["validations"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure and log."""
        if trainer.sanity_checking:
            return
        self._validations += 1
        if self._validations % self.every_n_validations == 0:
            values = self.measure(self.splice(pl_module), self._training_mean(trainer))
            log_values(pl_module, {f"val/{name}": values[name] for name in self.names})

    @torch.no_grad()
    def measure(self, splice: Splice, mean: Float[Tensor, " d_in"]) -> Mapping[str, float | None]:
        """All metrics of `sae.metrics.NextToken` for one function of activations."""
        lm = self._loaded()
        conditions: dict[str, Splice | None] = {"clean": None, "sae": splice}
        if not self._ablations:
            conditions |= {"zero": torch.zeros_like, "mean": mean_ablation(mean)}
        metric = self._metric.to(lm.device)
        metric.reset()
        for first in range(0, len(self._tokens), self.batch_contexts):
            chosen = slice(first, first + self.batch_contexts)
            tokens = self._tokens[chosen].to(lm.device)
            logits = {name: self._logits(lm, tokens, f) for name, f in conditions.items()}
            metric.update(tokens, self._document[chosen].to(lm.device), logits)
        if not self._ablations:
            self._ablations = {name: metric.ablation(name).clone() for name in ("zero", "mean")}
        for name, sums in self._ablations.items():
            metric.set_ablation(name, sums)
        return metric.compute()

    def _logits(self, lm: SplicedLM, tokens: Tensor, replace: Splice | None) -> Tensor:
        if replace is None:
            return lm.logits(tokens)
        first = 0 if self.keep_first else 1

        def put(x: Tensor) -> Tensor:
            return torch.cat([x[:, :first], replace(x[:, first:]).to(x)], dim=1)

        return lm.logits(tokens, replace={self.point: put})

    def _loaded(self) -> SplicedLM:
        if self._lm is None:
            # Building an LM draws random numbers; training must not see that.
            with torch.random.fork_rng():
                self._lm = self.load_lm()
        return self._lm

    def _training_mean(self, trainer: L.Trainer) -> Tensor:
        mean = (
            self.mean
            if self.mean is not None
            else getattr(getattr(trainer, "datamodule", None), "mean", None)
        )
        if mean is None:
            raise ConfigError(
                "Mean ablation needs the mean activation of the training split: pass mean=, or a "
                "datamodule that has one (ActivationDataModule)."
            )
        return mean


def _folded_dictionary(module: L.LightningModule) -> Splice:
    """The SAE as it would be saved now."""
    module_with_sae: Any = module
    return module_with_sae.dictionary.folded(module_with_sae.scale).to(module.device)
