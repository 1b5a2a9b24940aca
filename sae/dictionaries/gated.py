"""Gated dictionary: one path decides what fires, another how strongly (arXiv 2404.16014)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sae.dictionaries.base import PENALTY, Tensors, register
from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.penalty import L1Config, StartConfig
from sae.dictionaries.products import few_or_dense
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.dictionaries.untied import GRADIENT_NORM, Untied
from sae.kernels import latent_entries, latent_values
from sae.settings import setting


@register("gated")
class Gated(Untied):
    r"""$f = 1[\pi > 0] \cdot relu(e^{r} (\pi - b_{gate}) + b_{mag})$, $\pi = (x - b_{dec})W + b_{gate}$.

    Loss: reconstruction, plus `l1` times the sum of relu(π), plus the error of reconstructing from
    relu(π): the penalty shrinks the gate, not the magnitudes. As published the decoder is frozen
    in that last term, so that shrunk gates cannot pull at it; here it learns from both
    reconstructions, since it then finds more features and reconstructs better
    (docs/reference/architectures.md), as in sae-lens. A latent fires where π > 0, that is where its magnitude's pre-activation exceeds
    $b_{mag} - e^{r} b_{gate}$: the saved SAE is a JumpReLU, exactly.

    Source: Rajamanoharan et al. 2024 (arXiv 2404.16014), equations 6 to 8 (weights of the two
    paths shared up to a factor $e^{r}$ for each latent).
    """  # noqa: E501

    class Config(L1Config, StartConfig, Untied.Config):
        """Settings."""

        gate_trains_decoder: bool | None = setting(
            None, help="false: as published; null: true, but false under e2e"
        )

    e2e_settings = {"gate_trains_decoder": False}  # no squared error is to train the decoder
    activation, coefficient = "jumprelu", "l1"
    gradient_norm = GRADIENT_NORM
    biases = (*Untied.biases, "b_mag")
    per_latent = (*Untied.per_latent, "r_mag", "b_mag")

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.b_enc.data.fill_(init.bias(config.start_bias))
        self.r_mag = nn.Parameter(torch.zeros(shape.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(shape.d_sae))

    def _gate_and_code(self, x: Tensor) -> tuple[Code, Code]:
        """relu(π), and f."""
        terms = self.encoder_terms(x)
        pattern = few_or_dense(*terms, self.kernels)
        if isinstance(pattern, Tensor):
            pi = pattern
            f = (self.r_mag.exp() * (pi - self.b_enc) + self.b_mag).relu() * (pi > 0)
            return DenseCode(pi.relu()), DenseCode(f)
        gate = torch.relu(latent_values(*terms, pattern))
        factor, b_gate, b_mag = (
            latent_entries(vector, pattern) for vector in (self.r_mag.exp(), self.b_enc, self.b_mag)
        )
        magnitude = factor * (gate - b_gate) + b_mag
        return SparseCode(pattern, gate), SparseCode(pattern, magnitude.relu() * (gate > 0))

    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Code: magnitudes of the latents whose gate is open, 0 elsewhere."""
        return self._gate_and_code(x)[1]

    def encoding(self, x: Tensor, target: Tensor, state: StepState | None = None) -> Encoding:
        """Code and reconstruction of the magnitudes, and the gate's own code as `other`."""
        gate, code = self._gate_and_code(x)
        return Encoding(x, target, code, self.reconstruct(code, x), gate)

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """Penalty on the gate, and the error of the gate's own reconstruction."""
        x, gate = found.x, found.other
        assert gate is not None
        penalty = self.config.l1 * gate.l1()
        if self.config.gate_trains_decoder is not False:
            by_gate = self.reconstruct(gate, x)
        else:
            by_gate = gate.atoms_sum(self.W_dec.detach()) + self.base(x).detach()
        errors = mse_loss(by_gate.to(x.dtype), found.target, reduction="none")
        return {PENALTY: penalty, "gate": errors}

    def tensors(self) -> Tensors:
        """Tensors of the magnitude path."""
        return self.read_shifted(self.W_enc * self.r_mag.exp(), self.b_mag)

    def thresholds(self) -> Float[Tensor, " d_sae"]:
        """Threshold of each latent: its magnitude's pre-activation at which the gate opens."""
        return (self.b_mag - self.r_mag.exp() * self.b_enc).clamp_min(0)

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
        """As in `Untied`; gate and magnitude start equal."""
        super().revive(latents, x, direction, alive)
        self.r_mag[latents] = 0.0
        self.b_mag[latents] = 0.0
