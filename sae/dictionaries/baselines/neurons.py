"""The axes that the LM itself computes in: every coordinate of the activation is a latent."""

from typing import ClassVar

import torch

from sae.dictionaries.baselines.base import Centred, Form, Learned, Vectors, register
from sae.dictionaries.sae import SAE


@register("neurons")
class Neurons(Centred):
    """Coordinates after a ReLU: the paper's "default basis" (the authors' `IdentityReLU`)."""

    form: ClassVar[Form] = "relu"

    def latents(self, d_in: int) -> int:
        """One for each coordinate."""
        return d_in

    def learn(self, x: Vectors) -> Learned:
        """Read only the mean."""
        return Learned({"mean": x.mean}, {})

    def assemble(self, learned: Learned) -> SAE:
        """Encoder and decoder are the identity matrix."""
        eye, mean = torch.eye(len(learned.tensors["mean"])), learned.tensors["mean"]
        return self.sae(eye, eye, self.centre_of(mean), self.form)


@register("identity")
class Identity(Neurons):
    """Coordinates with their signs; with k the k of largest size."""

    form: ClassVar[Form] = "signed"
