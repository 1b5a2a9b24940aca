"""Rankings of latents by what they tell about a label."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.probing.linear import Linear

_EPS = 1e-6


def mean_difference(
    f: Float[Tensor, "n latents"], positive: Bool[Tensor, " n"]
) -> Float[Tensor, " latents"]:
    """Mean of each latent on positive examples minus its mean on the others."""
    return f[positive].mean(0) - f[~positive].mean(0)


def rank(f: Float[Tensor, "n latents"], labels: Int[np.ndarray, " n"]) -> Int[Tensor, " latents"]:
    r"""Latents by $|\bar f_{j|1} - \bar f_{j|0}| / m_j$, the largest first.

    $m_j$ is the mean of $|f_j|$ where the latent fires, so that rare and frequent, strong and weak
    latents compare.

    Source: sae-probes 0.4.2, `get_sorted_indices` with `mean_act_normalization`.

    Example:
        >>> rank(torch.tensor([[0.0, 1.0], [5.0, 1.0]]), np.array([0, 1])).tolist()
        [0, 1]
    """
    mean = f.abs().sum(0) / ((f != 0).sum(0) + _EPS)
    positive = torch.from_numpy(labels == 1).to(f.device)
    return mean_difference(f / (mean + _EPS), positive).abs().argsort(descending=True)


def effects(
    f: Float[Tensor, "texts d_sae"],
    labels: Int[Tensor, " texts"],
    probe: Linear,
    W_dec: Float[Tensor, "d_sae d_in"],
    only_more: bool,
) -> Float[Tensor, " d_sae"]:
    r"""$(\bar f_j^+ - \bar f_j^-)\;(w \cdot d_j)$: what a latent adds to the probe's logit.

    Args:
        f: Latents, means over each text.
        labels: 1 or 0.
        probe: Tells the labels apart; of one class.
        W_dec: Decoder.
        only_more: Latents that are lower on 1 have no effect.

    Source: SAEBench 0.6.0 (arXiv 2503.09532), `scr_and_tpp`.
    """
    difference = mean_difference(f, labels == 1)
    return (difference.clamp_min(0) if only_more else difference) * (W_dec.float() @ probe.weight)


def strongest(effect: Float[Tensor, " d_sae"], n: int) -> Bool[Tensor, " d_sae"]:
    """The n latents of largest effect, among those that have one.

    Example:
        >>> strongest(torch.tensor([0.5, 0.0, 2.0, 1.0]), 2).tolist()
        [False, False, True, True]
    """
    chosen = torch.zeros_like(effect, dtype=torch.bool)
    chosen[effect.topk(min(n, int((effect != 0).sum()))).indices] = True
    return chosen
