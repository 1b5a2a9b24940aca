"""What the untied dictionaries share: two matrices, two biases, unit-norm decoder rows."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae.dictionaries.base import Dictionary, LatentParameter, Tensors, unit_rows
from sae.dictionaries.codes import Code

REVIVED_NORM = 0.2
"""Norm of a revived encoder column, as a share of the mean norm of the alive ones."""


class Untied(Dictionary):
    """`pre = (x - b_dec) @ W_enc + b_enc`, `x_hat = f @ W_dec + b_dec`, rows of W_dec unit.

    The decoder starts with random unit rows and the encoder as its transpose; b_dec starts at the
    mean of the training split. The part of the decoder's gradient that is parallel to a row is
    removed before the optimiser step and the rows are brought back to length 1 right after it
    (Towards Monosemanticity, 2023, appendix; there b_dec starts at the geometric median).

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        mean: Scaled mean of the training split; zeros when unknown.
        generator: Source of the initial weights.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        mean: Float[Tensor, " d_in"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(d_in, d_sae)
        atoms = unit_rows(torch.randn(d_sae, d_in, generator=generator))
        self.W_dec = nn.Parameter(atoms)
        self.W_enc = nn.Parameter(atoms.T.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(
            torch.zeros(d_in) if mean is None else mean.detach().clone().float()
        )

    def pre(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Pre-activations."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.W_enc)

    def decode_code(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Sum of the firing atoms plus the decoder bias."""
        return code.dense() @ self.W_dec + self.b_dec

    def tensors(self) -> Tensors:
        """The four tensors, with the subtraction of b_dec folded into b_enc."""
        return Tensors(self.W_enc, self.b_enc - self.b_dec @ self.W_enc, self.W_dec, self.b_dec)

    def latent_parameters(self) -> list[LatentParameter]:
        """Encoder columns, encoder bias entries, decoder rows."""
        return [
            LatentParameter(self.W_enc, 1),
            LatentParameter(self.b_enc, 0),
            LatentParameter(self.W_dec, 0),
        ]

    @torch.no_grad()
    def constrain_gradients(self) -> None:
        """Remove the component of each decoder row's gradient that is parallel to the row."""
        grad = self.W_dec.grad
        if grad is not None:
            grad -= (grad * self.W_dec).sum(dim=1, keepdim=True) * self.W_dec

    @torch.no_grad()
    def constrain_parameters(self) -> None:
        """Bring the decoder rows back to length 1."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)

    @torch.no_grad()
    def revive(
        self,
        latents: Int[Tensor, " n"],
        x: Float[Tensor, "n d_in"],
        direction: Float[Tensor, "n d_in"],
        alive: Bool[Tensor, " d_sae"],
    ) -> None:
        """Decoder row := the direction; encoder column := 0.2 of the alive norm times it; bias 0.

        Source: Towards Monosemanticity, 2023, appendix "Neuron resampling".
        """
        del x
        norm = self.W_enc[:, alive].norm(dim=0).mean() if bool(alive.any()) else 1.0
        self.W_dec[latents] = direction
        self.W_enc[:, latents] = (REVIVED_NORM * norm * direction).T
        self.b_enc[latents] = 0.0
