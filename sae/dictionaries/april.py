"""Recipe of April 2024: free decoder norms, by which the penalty is weighted."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import PENALTY, Tensors, register
from sae.dictionaries.codes import Code, SparseCode
from sae.dictionaries.penalty import L1Config, StartConfig
from sae.dictionaries.products import relu_code
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.dictionaries.untied import GRADIENT_NORM, Untied

START_NORM = 1.0
"""Length of the decoder rows at the start; the encoder is their transpose. The recipe leaves 0.05
to 1; the longest start loses the fewest latents."""


@register("april")
class April(Untied):
    r"""ReLU code, penalty $l1 \sum_i f_i \|W_{dec,i}\|$, decoder rows of any length.

    No input bias: `f = relu(x @ W_enc + b_enc)`. Biases start at 0 for activations whose mean is
    subtracted: b_dec at the mean, b_enc at `start_bias` minus what the mean gives. (The recipe
    says 0; residual streams have means so large that a third of the latents would never fire.) It
    goes without resampling; its other half is the schedule of `experiment=april2024`: penalty
    warmed up over the first 5 %, learning rate decayed to 0 over the last 20 %, gradients clipped
    at norm 1.

    Source: Conerly et al., "Update on how we train SAEs", Circuits Updates, April 2024. Their
    lambda belongs to a squared error that is summed over d_in: l1 = lambda / d_in.
    """

    class Config(L1Config, StartConfig, Untied.Config):
        """Settings."""

    coefficient = "l1"
    gradient_norm = GRADIENT_NORM
    unit_atoms = False

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        bias = START_NORM * init.bias(config.start_bias)
        mean = torch.zeros(shape.d_in) if init.mean is None else init.mean.float()
        with torch.no_grad():
            self.b_enc.copy_(bias - self.encoder_rows @ mean)

    def start_rows(self, shape: Shape, init: Init) -> Float[Tensor, "d_sae d_in"]:
        """The second draw, so that a seed keeps giving the SAE that it gave."""
        super().start_rows(shape, init)
        return START_NORM * super().start_rows(shape, init)

    def encoder_terms(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """The input, the encoder's rows and its bias."""
        return x, self.encoder_rows, self.b_enc

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """ReLU of the pre-activations."""
        return relu_code(*self.encoder_terms(x), self.kernels)

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """`l1` times the sum of f times the norm of its decoder row."""
        code, norms = found.code, self.atom_norms()
        if isinstance(code, SparseCode):
            norms = norms[code.pattern.latents]
        return {PENALTY: self.config.l1 * code.with_values(code.values * norms).l1()}

    def atom_norms(self) -> Float[Tensor, " d_sae"]:
        """Norms of the decoder's rows."""
        return self.W_dec.norm(dim=1)

    def tensors(self) -> Tensors:
        """The four tensors as they are."""
        return Tensors(self.W_enc, self.b_enc, self.W_dec, self.output_bias(), self.W_skip)

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
        """As in `Untied`, with the decoder row at the mean length of the alive ones."""
        norm = self.W_dec[alive].norm(dim=1).mean() if bool(alive.any()) else START_NORM
        super().revive(latents, x, direction, alive)
        self.W_dec[latents] *= norm
