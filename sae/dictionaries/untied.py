"""Base of the untied dictionaries: two matrices, two biases, unit-norm decoder rows."""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from sae.dictionaries.base import Dictionary, Tensors
from sae.dictionaries.codes import Code
from sae.dictionaries.shape import Init, Shape
from sae.kernels import normalize_rows_, project_off_rows_, unit_rows
from sae.settings import setting

REVIVED_NORM = 0.2
"""Norm of a revived encoder column, as a share of the mean norm of the alive ones."""


GRADIENT_NORM = 0.01
"""Norm of all gradients together in every step of a penalised dictionary. Adam divides by it: its
size hardly matters, as long as all steps have the same."""

ENCODER_START = 0.2
"""Length of encoder rows at the start, where decoder rows have 1. A step moves every entry by about
the learning rate: short rows turn sooner (docs/reference/architectures.md). Over many steps they
find fewer features: in a long run they start at full length."""


class Untied(Dictionary):
    """`pre = (x - b_dec) @ W_enc + b_enc`, `x_hat = f @ W_dec + b_dec`, rows of W_dec unit.

    The decoder starts with random unit rows and the encoder as its transpose, `encoder_start` times
    as long; b_dec starts at the mean of the training split. The part of the decoder's gradient that
    is parallel to a row is removed before the optimiser step and the rows are brought back to
    length 1 right after it (Towards Monosemanticity, 2023, appendix; there b_dec starts at the
    geometric median).
    A transcoder makes another activation of the one that it reads:
    `pre = (x - centre) @ W_enc + b_enc`, `y_hat = f @ W_dec + (x - centre) @ W_skip + b_dec`. Its
    decoder rows start in random directions of their own, since those of the encoder lie in another
    space. The centre is the fixed mean of the input, b_dec starts at that of the target, the skip
    connection at zero (arXiv 2406.11944; skip: arXiv 2501.18823).

    Args:
        config: Settings of the architecture.
        shape: Sizes; `d_out` makes it a transcoder.
        init: Start values.
    """

    class Config(Dictionary.Config):
        """Settings of every untied dictionary."""

        skip: bool = setting(
            False, help="true adds a linear path from input to target (transcoders)"
        )
        frozen_decoder: bool = setting(
            False, help="true keeps the decoder as drawn, a control (docs/reference/controls.md)"
        )

    per_latent = ("encoder_rows", "b_enc", "W_dec")
    encoder = "encoder_rows"
    transcodes = True
    betas = (0.5, 0.99)
    bias_rate = 5.0  # a bias must travel several units, entries of unit rows some hundredths
    encoder_start: ClassVar[float] = 1.0
    unit_atoms: ClassVar[bool] = True
    """True if decoder rows are kept at length 1."""
    centre: Tensor | None
    W_skip: nn.Parameter | None

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        rows = atoms = self.start_rows(shape, init)
        if shape.d_out is not None:
            drawn = torch.randn(shape.d_sae, shape.d_out, generator=init.generator)
            atoms = rows.norm(dim=1, keepdim=True) * unit_rows(drawn)
        self.frozen_decoder = config.frozen_decoder
        self.W_dec = nn.Parameter(atoms, requires_grad=not config.frozen_decoder)
        # a latent's weights lie together
        self.encoder_rows = nn.Parameter((1.0 if init.long_run else self.encoder_start) * rows)
        self.b_enc = nn.Parameter(torch.zeros(shape.d_sae))
        mean = init.mean if shape.d_out is None else init.target_mean
        self.b_dec = nn.Parameter(_or_zeros(mean, self.W_dec.shape[1]))
        self.register_buffer(
            "centre", None if shape.d_out is None else _or_zeros(init.mean, shape.d_in)
        )
        skip = config.skip and shape.d_out is not None
        path = nn.Parameter(torch.zeros(shape.d_in, len(self.b_dec))) if skip else None
        self.register_parameter("W_skip", path)

    def start_rows(self, shape: Shape, init: Init) -> Float[Tensor, "d_sae d_in"]:
        """Directions of the latents at the start: random, of length 1."""
        return unit_rows(torch.randn(shape.d_sae, shape.d_in, generator=init.generator))

    @property
    def shift(self) -> Float[Tensor, " d_in"]:
        """Vector subtracted from the input: b_dec, in a transcoder the input's mean."""
        return self.b_dec if self.centre is None else self.centre

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
        if self.centre is not None:
            return x - self.centre, rows, self.b_enc
        return x - self.b_dec.detach(), rows, _EncoderBias.apply(self.b_enc, self.b_dec, rows)  # pyright: ignore[reportReturnType]

    def reconstruct(
        self, code: Code, x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """Sum of the firing atoms, the decoder bias and the skip connection's part."""
        return code.atoms_sum(self.W_dec) + self.base(x)

    def base(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Output where nothing fires."""
        if self.W_skip is None:
            return self.b_dec
        return (x - self.shift) @ self.W_skip + self.b_dec

    def tensors(self) -> Tensors:
        """The weights, with what is subtracted from the input folded into the biases."""
        return self.read_shifted(self.W_enc, self.b_enc)

    def read_shifted(self, W_enc: Tensor, b_enc: Tensor) -> Tensors:
        """The weights with an encoder that reads `x - shift`."""
        bias = b_enc - self.shift @ W_enc
        return Tensors(W_enc, bias, self.W_dec, self.output_bias(), self.W_skip)

    def output_bias(self) -> Float[Tensor, " d_out"]:
        """b_dec for a skip connection that reads the input as it is."""
        return self.b_dec if self.W_skip is None else self.b_dec - self.shift @ self.W_skip

    @torch.no_grad()
    def before_step(self) -> None:
        """Remove the component of each decoder row's gradient that is parallel to the row."""
        grad = self.W_dec.grad
        if self.unit_atoms and grad is not None:
            project_off_rows_(grad, self.W_dec.detach())

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring the decoder rows back to length 1."""
        # even a division by 1.0000001 would move frozen ones
        if self.unit_atoms and not self.frozen_decoder:
            normalize_rows_(self.W_dec.detach())

    @torch.no_grad()
    def revive(self, latents: Tensor, x: Tensor, direction: Tensor, alive: Tensor) -> None:
        """Decoder row := the direction; encoder row := 0.2 of the alive norm times it; bias 0.

        In a transcoder the direction is one of the output; the encoder row points at the input
        that it was drawn with, less the centre.

        Source: Towards Monosemanticity, 2023, appendix "Neuron resampling".
        """
        norm = self.encoder_rows[alive].norm(dim=1).mean() if bool(alive.any()) else 1.0
        self.W_dec[latents] = direction
        toward = direction if self.centre is None else unit_rows(x - self.centre)
        self.encoder_rows[latents] = REVIVED_NORM * norm * toward
        self.b_enc[latents] = 0.0


def _or_zeros(vector: Tensor | None, width: int) -> Tensor:
    return torch.zeros(width) if vector is None else vector.detach().clone().float()


class _EncoderBias(torch.autograd.Function):
    """b_enc, which hands on to b_dec the gradient that it is due by way of `x - b_dec`.

    That gradient is a product as large as the decoder's, summed over the batch. The sum over the
    batch of the pre-activations' gradients is the gradient of b_enc, so that it equals minus W_enc
    times that: a matrix times one vector.
    """

    @staticmethod
    def forward(ctx: Any, b_enc: Tensor, b_dec: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows.detach())
        return b_enc.view_as(b_enc)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        return grads[0], -(grads[0] @ rows), None
