"""Sets of latents of growing size, patched on held-out prompts, and the effect of each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.interventions.attribution import Effects, attribution, integrated_gradients
from sae.interventions.patching import OfLogits, Outcome, Patching

METHODS = ("attribution", "integrated gradients", "most active")
"""Orders in which latents join a set."""


class Prompts(NamedTuple):
    """Prompts of equal length with their counterfactuals.

    Args:
        patching: Patches latents in them.
        difference: Logit of the right answer less that of the wrong one.
    """

    patching: Patching
    difference: OfLogits


class Ranked(NamedTuple):
    """Latents ranked by their estimated effect on some prompts.

    Args:
        order: Latents by method, from the first to join a set to the last; those whose code never
            changes are left out.
        effects: Estimated change of the logit difference of each latent, by method; of `most
            active` the mean size of its change.
        error: Estimated effect of the SAE's error, by integrated gradients.
        total: Change of the logit difference when latents and error are patched.
    """

    order: Mapping[str, list[int]]
    effects: Mapping[str, Float[Tensor, " latents"]]
    error: float
    total: float


def ranked(prompts: Sequence[Prompts], steps: int) -> Ranked:
    """Rank latents on prompts; numbers are means over them.

    Args:
        prompts: The prompts.
        steps: Steps of integrated gradients; 0: that order is left out.
    """
    count = sum(len(one.patching.clean) for one in prompts)
    first = [attribution(*one) for one in prompts]
    second = [integrated_gradients(*one, steps) for one in prompts] if steps else []
    active = torch.zeros_like(first[0].latents)
    for patching, _ in prompts:
        active[patching.latents.cpu()] += patching.change.abs().sum((0, 1)).cpu().double()
    total = 0.0
    with torch.no_grad():
        for patching, difference in prompts:
            whole = difference(patching.logits(patching.whole)) - difference(patching.clean)
            total += float(whole.double().sum())
    effects = {
        "attribution": sum_of(first) / count,
        **({"integrated gradients": sum_of(second) / count} if steps else {}),
        "most active": active / count,
    }
    alive = active > 0
    order = {}
    for name, effect in effects.items():
        key = effect if name == "most active" else -effect  # a patch is to lower the difference
        order[name] = [i for i in key.argsort(descending=True).tolist() if alive[i]]
    error = sum(effects.error for effects in second)
    return Ranked(order, effects, error / count, total / count)


def measured(
    prompts: Sequence[Prompts], latents: Sequence[int] | None, error: float = 0.0,
    *, without: bool = False,
) -> Outcome:  # fmt: skip
    """Patch a set of latents in all prompts.

    Args:
        prompts: The prompts.
        latents: The set; None: all.
        error: 1 patches the error of the SAE as well.
        without: Patch all latents but these.
    """
    parts = []
    for patching, difference in prompts:
        every = range(patching.num_latents)
        share = patching.share_of(every if latents is None else latents)
        parts.append(patching.outcome(1 - share if without else share, difference, error))
    return Outcome(*(torch.cat(part) for part in zip(*parts, strict=True)))


def sizes(most: int, points: int = 12) -> list[int]:
    """Growing sizes of sets, evenly spaced on a logarithmic scale.

    Example:
        >>> sizes(100, 4)
        [1, 5, 22, 100]
    """
    return sorted({round(size) for size in np.geomspace(1, most, points)}) if most else []


def orders(ranks: Ranked, random_sets: int) -> list[tuple[str, int, list[int]]]:
    """Orders in which latents join a set: method, number of the draw, latents.

    Random orders are of the latents whose code changes; other methods have one draw.
    """
    found = [(name, 0, order) for name, order in ranks.order.items()]
    alive = ranks.order["most active"]
    for draw in range(random_sets):
        found.append(("random", draw, np.random.default_rng(draw).permutation(alive).tolist()))
    return found


def smallest(
    prompts: Sequence[Prompts], order: Sequence[int], most_kl: float, known: Mapping[int, float]
) -> int | None:
    """The size of the smallest set in an order with mean KL(target || run) up to a limit.

    Between the first known size that reaches it and the one before, the KL is taken to fall.

    Args:
        prompts: The prompts.
        order: Latents in the order in which they join.
        most_kl: The limit, in nats.
        known: Mean KL by size, for some sizes.

    Returns:
        The size; None if no known size reaches the limit.
    """
    reached = [size for size in sorted(known) if known[size] <= most_kl]
    if not reached:
        return None
    high = reached[0]
    low = max((size for size in known if size < high), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        if float(measured(prompts, order[:middle]).kl.mean()) <= most_kl:
            high = middle
        else:
            low = middle
    return high


def sum_of(effects: Sequence[Effects]) -> Float[Tensor, " latents"]:
    """Effects on all prompts, of those on batches."""
    return torch.stack([one.latents for one in effects]).sum(0)
