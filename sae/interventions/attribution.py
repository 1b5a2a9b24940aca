"""Effects of single latents on a number, estimated by gradients or patched exactly."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.interventions.patching import OfLogits, Patching


class Effects(NamedTuple):
    """Estimated change of a number when a latent takes its counterfactual value.

    Args:
        latents: Change due to each latent, summed over positions and prompts.
        error: Change due to the SAE's error.
    """

    latents: Float[Tensor, " latents"]
    error: float


def attribution(patching: Patching, measure: OfLogits) -> Effects:
    """First-order estimate: change of the code times the gradient at the prompt.

    Source: attribution patching (Nanda 2023), of latents (Marks et al. 2024, arXiv 2403.19647).
    """
    return _effects(patching, patching.gradient(measure))


def integrated_gradients(patching: Patching, measure: OfLogits, steps: int = 10) -> Effects:
    """The gradient averaged along the straight line to the counterfactual's activation.

    Latents and the error move together, so all effects sum to the change of the number, with an
    error of order 1 / steps^2: the midpoint rule (Sundararajan et al. 2017, arXiv 1703.01365).
    """
    total = torch.zeros_like(patching.whole)
    for i in range(steps):
        total += patching.gradient(measure, (i + 0.5) / steps)
    return _effects(patching, total / steps)


@torch.no_grad()
def patched_alone(
    patching: Patching, measure: OfLogits, latents: Sequence[int]
) -> Float[Tensor, " chosen"]:
    """Exact change of the number, summed over prompts, for each latent patched alone."""
    before = measure(patching.clean).cpu().double().sum()
    found = []
    for latent in latents:
        step = patching.step(patching.share_of([latent]))
        found.append(measure(patching.logits(step)).cpu().double().sum() - before)
    return torch.stack(found)


def _effects(patching: Patching, gradient: Float[Tensor, "prompts ctx d_in"]) -> Effects:
    changing = (patching.change * (gradient @ patching.W_dec.T)).sum((0, 1)).cpu().double()
    by_latent = torch.zeros(patching.num_latents, dtype=torch.float64)
    by_latent[patching.latents.cpu()] = changing
    return Effects(by_latent, float((patching.error * gradient).sum()))
