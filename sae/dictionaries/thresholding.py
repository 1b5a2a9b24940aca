"""The authors' thresholding dictionary: tied, with a learned soft step in place of the ReLU."""

from math import log

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from sae.dictionaries.base import Tensors, register
from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.products import few_or_dense
from sae.dictionaries.sae import smooth_jump
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.tied import Tied
from sae.kernels import latent_entries, latent_values, unit_rows
from sae.settings import setting

START = 0.3
"""Thresholds at the start, in the scaled space, where a latent's input has about unit variance."""


@register("thresholding")
class Thresholding(Tied):
    r"""$f = g\, t\, \varphi(\pi / t)$, $\varphi(s) = relu6(60(s-0.9))/6 + relu(s-1)$, tied.

    0 up to 0.9 t, then a steep ramp, then g times the input: a JumpReLU (2023, before its name)
    whose step is steep instead of sharp, so that thresholds need no estimated gradient. t and the
    gain g are learned for each latent, both as exponentials; everything else is `Tied`.

    Source: HoagyC/sparse_coding `FunctionalThresholdingSAE` (a learned scale squared, 1 / t here,
    and a learned gain). It fails with a KeyError at the repository's last commit; the activation
    function is theirs, the start values are ours.
    """

    class Config(Tied.Config):
        """Settings."""

        start_bias: float | None = setting(
            0.0, help="encoder biases at the start; the thresholds keep the start sparse"
        )

    activation = "smooth_jumprelu"
    per_latent = (*Tied.per_latent, "log_threshold", "log_gain")

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.log_threshold = nn.Parameter(torch.full((shape.d_sae,), log(START)))
        self.log_gain = nn.Parameter(torch.zeros(shape.d_sae))

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Soft-thresholded code of the centred input."""
        x, W = self._centred(x), unit_rows(self.W)
        t, gain = self.log_threshold.exp(), self.log_gain.exp()
        with torch.no_grad():
            pattern = few_or_dense(x, W, self.b_enc - 0.9 * t, self.kernels)
        if isinstance(pattern, Tensor):
            pre = linear(x, W, self.b_enc)
            return DenseCode(gain * smooth_jump(pre, t))
        pre, t = latent_values(x, W, self.b_enc, pattern), latent_entries(t, pattern)
        return SparseCode(pattern, latent_entries(gain, pattern) * smooth_jump(pre, t))

    def tensors(self) -> Tensors:
        """Tensors of `Tied`, with the gain in the decoder."""
        tied = super().tensors()
        return tied._replace(W_dec=tied.W_dec * self.log_gain.exp()[:, None])

    def thresholds(self) -> Float[Tensor, " d_sae"]:
        """The learned thresholds."""
        return self.log_threshold.exp()

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
        """As in `Tied`, with a threshold that the drawn input exceeds twice."""
        super().revive(latents, x, direction, alive)
        response = ((x - self.centre) * direction).sum(dim=1) + self.b_enc[latents]
        self.log_threshold[latents] = (response / 2).clamp_min(1e-3).log()
        self.log_gain[latents] = 0.0
