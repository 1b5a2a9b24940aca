"""Fresh probes: trained on rows as they are after an edit, and tested on others."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae.probing.linear import Linear, Recipe, train

STANDARDISED = Recipe(20, 256, 1e-2, 1e-4, weight_decay=1e-4, balanced=True)
"""Linear probe on columns of mean 0 and standard deviation 1."""
_HIDDEN, _STEPS, _LR = 64, 400, 3e-3


class Scale(NamedTuple):
    """Column means and standard deviations of training rows."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]

    @classmethod
    def of(cls, x: Float[Tensor, "n d"]) -> "Scale":
        """The scale of rows; columns without spread are only centred."""
        std = x.std(0)
        return cls(x.mean(0), torch.where(std > 1e-6 * x.abs().max(), std, 1.0))

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows on this scale."""
        return (x - self.mean) / self.std


def linear(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], seed: int) -> Linear:
    """A logistic probe of two classes, for rows as they are."""
    scale = Scale.of(x)
    found = train(scale(x), y, STANDARDISED, seed)
    weight = found.weight / scale.std
    return Linear(weight, found.bias - weight @ scale.mean)


def mlp(x: Float[Tensor, "n d"], y: Int[Tensor, " n"], seed: int) -> nn.Module:
    """A probe with a hidden layer of 64 ReLUs; gives logits [n 1]."""
    scale = Scale.of(x)
    inputs, targets = scale(x), y.float()[:, None]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(x.shape[1], _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))
    positive = (len(y) - targets.sum()) / targets.sum()
    loss_of = nn.BCEWithLogitsLoss(pos_weight=positive)
    optimizer = torch.optim.AdamW(layers.parameters(), lr=_LR, weight_decay=1e-2)
    with torch.enable_grad():
        for _ in range(_STEPS):
            batch = torch.randint(len(x), (min(256, len(x)),), generator=generator)
            optimizer.zero_grad()
            loss_of(layers(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return nn.Sequential(_Scaled(scale), layers).requires_grad_(False)


class _Scaled(nn.Module):
    """A scale as a layer."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x)
