"""Inputs and outputs of a dictionary in a training step."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from sae.dictionaries.codes import Code


class StepState(NamedTuple):
    """Training state that the loss depends on.

    Attributes:
        penalty: Factor of the sparsity penalty: the warm-up, times what `target_l0` steers.
        progress: Share of the run that is done, from 0 to 1.
        dead: Mask of the dead latents; None where they are not counted.
    """

    penalty: float | Tensor = 1.0
    progress: float = 0.0
    dead: Bool[Tensor, " d_sae"] | None = None


NOMINAL = StepState()
"""The full penalty, the start of the run, nothing known to be dead."""


class Encoding(NamedTuple):
    """A batch, its code and its reconstruction: what every loss term is made from.

    Attributes:
        x: Input.
        target: Vectors to reconstruct: the input, except in transcoders.
        code: Feature activations.
        x_hat: Reconstruction.
        other: A second code that the loss needs: of a gate, of a larger k, of a count.
    """

    x: Float[Tensor, "batch d_in"]
    target: Float[Tensor, "batch d_out"]
    code: Code
    x_hat: Float[Tensor, "batch d_out"]
    other: Code | None = None


class StepOutput(NamedTuple):
    """Output of a dictionary in a training step.

    `terms` are the named parts of the loss, each already multiplied by its coefficient; their sum
    is the loss, and each is logged as `train/loss_<name>`.
    """

    x_hat: Float[Tensor, "batch d_out"]
    code: Code
    terms: dict[str, Float[Tensor, ""]]
