"""Small sets of latents that are learned, or searched greedily, to move predictions."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sae import functional
from sae.interventions.patching import Patching
from sae.progress import progress

_LOW, _HIGH, _TEMPERATURE = -0.1, 1.1, 2 / 3
_LR = 0.2
_START = 1.0  # most latents start patched: a latent that is off gets no gradient


def learn_mask(
    patchings: Sequence[Patching], candidates: Int[Tensor, " candidates"], *, penalty: float,
    steps: int = 60,
) -> Int[Tensor, " chosen"]:  # fmt: skip
    """Latents whose patches bring the prompts to their counterfactuals, as few as pay.

    Minimises mean KL(target || run) / mean KL(target || clean) + penalty * (number of latents) by
    Adam on hard-concrete gates (Louizos et al. 2018, arXiv 1712.01312, equations 10 to 13).

    Args:
        patchings: The prompts.
        candidates: Latents that may be chosen.
        penalty: A latent pays if it lowers the KL by more than this share of the clean KL.
        steps: Steps of Adam, each over all prompts.

    Returns:
        The chosen latents.
    """
    device = patchings[0].change.device
    candidates = candidates.to(device)
    generator = torch.Generator(device).manual_seed(0)
    gates = torch.full((len(candidates),), _START, device=device, requires_grad=True)
    adam = torch.optim.Adam([gates], lr=_LR)
    prompts = sum(len(one.clean) for one in patchings)
    scale = 1 / (_kl_of_clean(patchings) * prompts)
    with progress("learn a mask", steps, "steps") as advance:
        for _ in range(steps):
            noise = torch.rand(len(gates), generator=generator, device=device).clamp(1e-6, 1 - 1e-6)
            spread = torch.sigmoid((noise.logit() + gates) / _TEMPERATURE)
            gate = (spread * (_HIGH - _LOW) + _LOW).clamp(0, 1)
            leaf = gate.detach().requires_grad_()
            leaf.grad = torch.zeros_like(leaf)
            for one in patchings:  # each batch's graph is gone before the next one is built
                share = torch.zeros(one.num_latents, device=device)
                share = share.index_put((candidates,), leaf)
                kl = functional.kl_divergence(one.target, one.logits(one.step(share))).sum()
                (kl * scale).backward()
            on = torch.sigmoid(gates - _TEMPERATURE * math.log(-_LOW / _HIGH))
            (gate @ leaf.grad + penalty * on.sum()).backward()
            adam.step()
            adam.zero_grad()
            advance(1)
    open_ = torch.sigmoid(gates.detach()) * (_HIGH - _LOW) + _LOW > 0.5
    return candidates[open_]


Found = Callable[[float, list[int]], None]
"""Is told a threshold and the latents that are left."""


@torch.no_grad()
def search_greedily(
    patchings: Sequence[Patching], candidates: Sequence[int], thresholds: Sequence[float],
    *, seed: int, found: Found,
) -> None:  # fmt: skip
    """The paper's search: all candidates are patched, those that change little are dropped.

    For each threshold, ascending, the candidates that are left are visited in random order, and one
    is dropped if KL(run || target) rises by less than the threshold without it (arXiv 2309.08600,
    section 4; Conmy et al. 2023, arXiv 2304.14997, algorithm 1).

    Args:
        patchings: The prompts.
        candidates: Latents that are patched at first.
        thresholds: Thresholds in nats.
        seed: Seed of the orders.
        found: Gets each threshold and the latents that are left, in the order of `candidates`.
    """
    generator = torch.Generator().manual_seed(seed)
    left = list(candidates)
    now = _kl_paper(patchings, left)
    with progress("search greedily", len(thresholds), "thresholds") as advance:
        for threshold in sorted(thresholds):
            order = torch.randperm(len(left), generator=generator).tolist()
            for latent in [left[i] for i in order]:
                rest = [one for one in left if one != latent]
                kl = _kl_paper(patchings, rest)
                if kl - now < threshold:
                    left, now = rest, kl
            found(threshold, list(left))
            advance(1)


def _kl_paper(patchings: Sequence[Patching], latents: Sequence[int]) -> float:
    total, prompts = 0.0, 0
    for one in patchings:
        logits = one.logits(one.step(one.share_of(latents)))
        total += float(functional.kl_divergence(logits, one.target).sum())
        prompts += len(logits)
    return total / prompts


def _kl_of_clean(patchings: Sequence[Patching]) -> float:
    kls = [functional.kl_divergence(one.target, one.clean) for one in patchings]
    return max(float(torch.cat(kls).mean()), 1e-9)
