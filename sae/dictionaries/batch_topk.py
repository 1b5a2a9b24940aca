"""BatchTopK dictionary: the k * batch largest of a batch fire (arXiv 2412.06410)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import register
from sae.dictionaries.codes import Code, SparseCode
from sae.dictionaries.products import selected_code
from sae.dictionaries.selected import Selected, wider
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.kernels import Pattern, select_batch_topk, select_positive

THRESHOLD_PACE = 1e-2
"""Weight of a batch's smallest firing activation in the running mean that becomes the threshold."""


@register("batch_topk")
class BatchTopK(Selected):
    """Keeps the `k * batch` largest pre-activations of a training batch, then ReLU; no penalty.

    What fires must not depend on the other vectors of a batch once training is over: the mean over
    the training batches of the smallest activation that fired becomes a threshold, and evaluation
    and the saved SAE keep what exceeds it (JumpReLU). The mean is exact for the first 100 batches
    and then runs with weight 0.01: what fires changes as the dictionary learns, and a mean over a
    whole run would end far above the last batches' threshold.
    """

    activation = "jumprelu"
    betas = (0.5, 0.99)  # FVU .0633 after 3 M vectors; .0680 with 0.999
    threshold: Tensor
    batches: Tensor

    def __init__(self, config: Selected.Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self._smallest: Tensor | None = None

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Code of single vectors: values above the learned threshold, independent of the batch."""
        code = selected_code(
            *self.encoder_terms(x), self.kernels, lambda pre: select_positive(pre - self.threshold)
        )
        if isinstance(code, SparseCode):
            values = code.values * (code.values > self.threshold)
            return SparseCode(code.pattern, values)
        return code

    def encoding(self, x: Tensor, target: Tensor, state: StepState | None = None) -> Encoding:
        """Select over the batch in training, and note the smallest pre-activation that fired."""
        if state is None:
            return super().encoding(x, target)
        code = selected_code(
            *self.encoder_terms(x),
            self.kernels,
            select=self._select,
            candidates=lambda pre: select_batch_topk(pre, min(wider(self.config.k), self.d_sae)),
        )
        return Encoding(x, target, code, self.reconstruct(code, x))

    def _select(self, pre: Float[Tensor, "batch d_sae"]) -> Pattern:
        """The smallest selected pre-activation is noted as it was selected.

        The smallest of the recomputed values would lie below it: it is the extreme of many values
        near the border, each moved a little by the rounding of the selection.
        """
        pattern = select_batch_topk(pre, self.config.k)
        fired = pre.detach()[pattern.rows, pattern.latents]
        # None: nothing was positive
        self._smallest = fired.min().to(self.threshold) if len(fired) else None
        return pattern

    @torch.no_grad()
    def after_step(self) -> None:
        """Unit decoder rows, and the threshold of the batch that was just trained on."""
        super().after_step()
        if self._smallest is None:
            return
        self.batches += 1
        self.threshold.lerp_(self._smallest, (1 / self.batches).clamp_min(THRESHOLD_PACE))
        self._smallest = None

    def thresholds(self) -> Float[Tensor, " d_sae"]:
        """One threshold, repeated for every latent."""
        return self.threshold.expand(self.d_sae)
