"""Linear probes trained by gradient steps, with the recipes of published protocols."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.progress import progress


class Recipe(NamedTuple):
    """Settings of `train`.

    Args:
        epochs: Passes over the examples.
        batch_rows: Examples in a batch.
        lr: Learning rate.
        last_lr: Learning rate after the last epoch; it falls by one factor an epoch.
        weight_decay: Weight decay of Adam.
        decoupled: True if the weight decay is AdamW's.
        l1: Weight of the sum of |weight|, a mean over classes.
        balanced: Positive examples weigh as much as negative ones.
        drawn_bias: True if biases start at random, like the weights, instead of at 0.
    """

    epochs: int
    batch_rows: int
    lr: float
    last_lr: float | None = None
    weight_decay: float = 0.0
    decoupled: bool = False
    l1: float = 0.0
    balanced: bool = False
    drawn_bias: bool = False


TEXT_MEANS = Recipe(20, 16, 1e-3, weight_decay=1e-2, decoupled=True, l1=1e-3)
"""Probes of TPP and SCR in SAEBench 0.6.0, which keeps the epoch of the best test accuracy; here
the last one is kept."""
ACTIVATIONS = Recipe(50, 64, 1e-2, 1e-5, weight_decay=1e-4, balanced=True, drawn_bias=True)
"""Probes of first letters on activations in SAEBench 0.6.0, whose batches of 4,096 are two steps an
epoch for 8,000 words."""
LATENTS = ACTIVATIONS._replace(batch_rows=256, weight_decay=1e-6, l1=0.01)
"""Probes of first letters on latents."""


class Linear(NamedTuple):
    """Linear classifiers, one a class against all others; yes where the logit is positive."""

    weight: Float[Tensor, "... d"]
    bias: Float[Tensor, "..."]

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n ..."]:
        """Logits."""
        return x @ self.weight.movedim(0, -1) + self.bias

    def right(
        self, x: Float[Tensor, "n d"], labels: Int[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """1 where the classifier is right, else 0."""
        return ((self(x) > 0).long() == labels).double()


def train(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n ..."] | Float[Tensor, "n ..."],
    recipe: Recipe,
    seed: int,
    device: torch.device | str = "cpu",
    title: str | None = None,
) -> Linear:
    """Train by Adam on the cross entropy of each class against all others.

    Args:
        x: Inputs, one row for each example.
        y: 1 where a row belongs to a class, else 0; each class has some of both.
        recipe: Settings of the training.
        seed: Seed of the start and the batches.
        device: Device to train it on; the result comes back to the CPU.
        title: Title of the progress bar; None: no bar.
    """
    generator = torch.Generator().manual_seed(seed)
    bound, classes, d = x.shape[1] ** -0.5, y.shape[1:], x.shape[1]
    start = torch.empty(*classes, d + recipe.drawn_bias)
    start.uniform_(-bound, bound, generator=generator)
    first_bias = start[..., -1] if recipe.drawn_bias else torch.zeros(classes)
    weight = start[..., :d].to(device).clone().requires_grad_()
    bias = first_bias.to(device).clone().requires_grad_()
    adam = torch.optim.AdamW if recipe.decoupled else torch.optim.Adam
    optimizer = adam([weight, bias], lr=recipe.lr, weight_decay=recipe.weight_decay)
    fall = 1.0 if recipe.last_lr is None else (recipe.last_lr / recipe.lr) ** (1 / recipe.epochs)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=fall)
    y, positives = y.float(), y.float().sum(0)
    weights = ((len(y) - positives) / positives).to(device) if recipe.balanced else None
    loss_of = torch.nn.BCEWithLogitsLoss(pos_weight=weights)
    shown = nullcontext(lambda n: None) if title is None else None
    with torch.enable_grad(), shown or progress(str(title), recipe.epochs, "epochs") as advance:
        for _ in range(recipe.epochs):
            for batch in torch.randperm(len(x), generator=generator).split(recipe.batch_rows):
                logits = Linear(weight, bias)(x[batch].to(device))
                loss = loss_of(logits, y[batch].to(device))
                if recipe.l1:
                    loss = loss + recipe.l1 * weight.abs().sum(-1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
            advance(1)
    return Linear(weight.detach().cpu(), bias.detach().cpu())
