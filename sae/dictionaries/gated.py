"""Gated dictionary: one path decides what fires, another how strongly (arXiv 2404.16014)."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sae.dictionaries.base import (
    NOMINAL,
    LatentParameter,
    Moment,
    StepOutput,
    Tensors,
    register,
)
from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.penalty import L1Config, StartConfig
from sae.dictionaries.sae import SAEConfig
from sae.dictionaries.shape import Init, Shape
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
    (docs/architectures.md; sae-lens does so, too). A latent fires where π > 0, that is where its magnitude's pre-activation exceeds
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
    coefficient = "l1"
    gradient_norm = GRADIENT_NORM
    biases = (*Untied.biases, "b_mag")

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.l1, self.gate_trains_decoder = config.l1, config.gate_trains_decoder is not False
        self.b_enc.data.fill_(init.bias(config.start_bias))
        self.r_mag = nn.Parameter(torch.zeros(shape.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(shape.d_sae))

    def _gate_and_code(self, x: Tensor) -> tuple[Code, Code]:
        """relu(π), and f."""
        terms = self.encoder_terms(x)
        pattern = self._few_or_dense(*terms)
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
        """Magnitudes where the gate is open."""
        return self._gate_and_code(x)[1]

    def training_output(
        self, batch: Float[Tensor, "batch width"], moment: Moment = NOMINAL
    ) -> StepOutput:
        """Reconstruction, penalty on the gate, and the gate's own reconstruction."""
        x, target = self.split(batch)
        gate, code = self._gate_and_code(x)
        x_hat, penalties = self.reconstruct(code, x), {"sparsity": self.l1 * gate.l1()}
        output = self._with_penalties(target, code, x_hat, moment, penalties)
        if self.gate_trains_decoder:
            by_gate = self.reconstruct(gate, x)
        else:
            by_gate = gate.atoms_sum(self.W_dec.detach()) + self.base(x).detach()
        output.terms["gate"] = mse_loss(by_gate.to(x.dtype), target)
        return output

    @torch.no_grad()
    def row_losses(self, batch: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Both reconstructions and the penalty on the gate."""
        x, target = self.split(batch)
        gate, code = self._gate_and_code(x)
        x_hats = [self.reconstruct(of, x).to(x.dtype) for of in (code, gate)]
        errors = torch.stack([(target - x_hat).square().mean(dim=1) for x_hat in x_hats])
        return errors.sum(0) + self.l1 * gate.l1()

    def tensors(self) -> Tensors:
        """Those of the magnitude path."""
        W_enc = self.W_enc * self.r_mag.exp()
        return Tensors(W_enc, self.b_mag - self.shift @ W_enc, self.W_dec, self.output_bias())

    def thresholds(self) -> Float[Tensor, " d_sae"]:
        """Where the gate opens, on the pre-activations of the magnitudes."""
        return (self.b_mag - self.r_mag.exp() * self.b_enc).clamp_min(0)

    def latent_parameters(self) -> list[LatentParameter]:
        """Those of `Untied`, and the magnitudes' factors and biases."""
        own = [LatentParameter(self.r_mag, 0), LatentParameter(self.b_mag, 0)]
        return [*super().latent_parameters(), *own]

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
        """As in `Untied`; gate and magnitude start equal."""
        super().revive(latents, x, direction, alive)
        self.r_mag[latents] = 0.0
        self.b_mag[latents] = 0.0

    def inference_config(self) -> SAEConfig:
        """How the saved SAE encodes: JumpReLU."""
        return replace(super().inference_config(), activation="jumprelu")
