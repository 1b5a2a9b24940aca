"""What the untied dictionaries share: two matrices, two biases, unit-norm decoder rows."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from sae.dictionaries.base import Dictionary, LatentParameter, Tensors
from sae.dictionaries.codes import Code
from sae.kernels import normalize_rows_, project_off_rows_, unit_rows

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
        self.frozen_decoder = False
        self.W_dec = nn.Parameter(atoms)
        self.encoder_rows = nn.Parameter(atoms.clone())  # a latent's weights lie together
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(
            torch.zeros(d_in) if mean is None else mean.detach().clone().float()
        )

    @property
    def W_enc(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder, a column for each latent: a view of the parameter `encoder_rows`."""
        return self.encoder_rows.T

    def pre(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Pre-activations."""
        return linear(*self.encoder_terms(x))

    def encoder_terms(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """`x - b_dec`, the encoder's rows and its bias, with all gradients."""
        rows = self.encoder_rows
        return x - self.b_dec.detach(), rows, _EncoderBias.apply(self.b_enc, self.b_dec, rows)  # pyright: ignore[reportReturnType]

    def decode_code(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Sum of the firing atoms plus the decoder bias."""
        return code.atoms_sum(self.W_dec) + self.b_dec

    def tensors(self) -> Tensors:
        """The four tensors, with the subtraction of b_dec folded into b_enc."""
        return Tensors(self.W_enc, self.b_enc - self.b_dec @ self.W_enc, self.W_dec, self.b_dec)

    def latent_parameters(self) -> list[LatentParameter]:
        """Encoder rows, encoder bias entries, decoder rows."""
        return [
            LatentParameter(self.encoder_rows, 0),
            LatentParameter(self.b_enc, 0),
            LatentParameter(self.W_dec, 0),
        ]

    def freeze_decoder(self) -> None:
        """Keep the decoder as it is from now on: a control (arXiv 2602.14111, docs/controls.md)."""
        self.W_dec.requires_grad_(False)
        self.frozen_decoder = True

    @torch.no_grad()
    def constrain_gradients(self) -> None:
        """Remove the component of each decoder row's gradient that is parallel to the row."""
        grad = self.W_dec.grad
        if grad is not None:
            project_off_rows_(grad, self.W_dec.detach())

    @torch.no_grad()
    def constrain_parameters(self) -> None:
        """Bring the decoder rows back to length 1."""
        if not self.frozen_decoder:  # even a division by 1.0000001 would move them
            normalize_rows_(self.W_dec.detach())

    @torch.no_grad()
    def revive(
        self,
        latents: Int[Tensor, " n"],
        x: Float[Tensor, "n d_in"],
        direction: Float[Tensor, "n d_in"],
        alive: Bool[Tensor, " d_sae"],
    ) -> None:
        """Decoder row := the direction; encoder row := 0.2 of the alive norm times it; bias 0.

        Source: Towards Monosemanticity, 2023, appendix "Neuron resampling".
        """
        del x
        norm = self.encoder_rows[alive].norm(dim=1).mean() if bool(alive.any()) else 1.0
        self.W_dec[latents] = direction
        self.encoder_rows[latents] = REVIVED_NORM * norm * direction
        self.b_enc[latents] = 0.0


class _EncoderBias(torch.autograd.Function):
    """b_enc, which hands on to b_dec the gradient that it is due by way of `x - b_dec`.

    That gradient is a product as large as the decoder's, summed over the batch. The sum over the
    batch of the pre-activations' gradients is the gradient of b_enc, so that it equals minus W_enc
    times that: a matrix times one vector.
    """

    @staticmethod
    def forward(ctx: Any, b_enc: Tensor, b_dec: Tensor, rows: Tensor) -> Tensor:
        del b_dec
        ctx.save_for_backward(rows.detach())
        return b_enc.view_as(b_enc)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return grads[0], -(grads[0] @ rows), None
