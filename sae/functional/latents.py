"""Statistics of latents: how they fire, and how alike their directions are."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.functional.defined import MIN_RELATIVE_VARIANCE, where_defined

DENSE_FREQUENCY = 0.1
"""A latent is dense when it fires on more than this share of the tokens."""

RARE_FREQUENCY = 1e-4
"""A latent is rare when it fires, but on less than this share of the tokens."""

_HISTOGRAM_LOG10_EDGES = torch.linspace(-8, 0, 33, dtype=torch.float64)


def l0(f: Float[Tensor, "... d_sae"]) -> Int[Tensor, "..."]:
    """Number of latents that fire (f != 0) for each row.

    Example:
        >>> l0(torch.tensor([[0.0, 1.5, -2.0], [0.0, 0.0, 0.0]]))
        tensor([2, 0])
    """
    return (f != 0).sum(-1)


def firing(
    f: Float[Tensor, "batch d_sae"],
) -> tuple[Int[Tensor, " batch"], Int[Tensor, " d_sae"]]:
    """`l0` of each row and the number of rows on which each latent fires.

    Two matrix-vector products: several times faster on a CPU than counting booleans, and exact
    below 2^24 rows.

    Example:
        >>> firing(torch.tensor([[0.0, 1.5, -2.0], [0.0, 3.0, 0.0]]))
        (tensor([2, 1]), tensor([0, 2, 1]))
    """
    fired = (f != 0).float()
    by_row = fired @ fired.new_ones(fired.shape[1])
    by_latent = fired.new_ones(fired.shape[0]) @ fired
    return by_row.long(), by_latent.long()


def firing_histogram(frequencies: Float[Tensor, " d_sae"]) -> dict[str, object]:
    """Latents by log10 of the share of tokens they fire on; the silent ones apart.

    The edges are the same for every SAE, so that histograms can be laid over each other. Latents
    rarer than the first edge are counted in the first bin.

    Returns:
        `log10_edges` (33 numbers from -8 to 0), `latents` (32 counts) and `silent` (a count), as
        plain numbers ready for JSON.

    Example:
        >>> histogram = firing_histogram(torch.tensor([0.0, 0.5, 1e-3, 1e-3]))
        >>> histogram["silent"], sum(histogram["latents"]), max(histogram["latents"])
        (1, 3, 2)
    """
    edges = _HISTOGRAM_LOG10_EDGES
    fired = frequencies[frequencies > 0].detach().double().cpu()
    logarithms = fired.log10().clamp(edges[0].item(), edges[-1].item())
    return {
        "log10_edges": edges.tolist(),
        "latents": torch.histogram(logarithms, edges).hist.long().tolist(),
        "silent": len(frequencies) - len(fired),
    }


def activation_moments(
    power_sums: Float[Tensor, "d_sae 4"], num_rows: int
) -> dict[str, Float[Tensor, " d_sae"]]:
    r"""Mean, standard deviation, skew and kurtosis of each latent's activations, zeros included.

    Skew and kurtosis are about 0, not about the mean: $E[f^3]/\sigma^3$ and $E[f^4]/\sigma^4$.
    NaN where a latent does not vary.

    Args:
        power_sums: Sums over rows of f, f^2, f^3 and f^4, float64.
        num_rows: Number of rows, those on which a latent is silent included.

    Source: HoagyC/sparse_coding, `calc_moments_streaming` (which also clamps the denominators
    at 1e-8, a number with a unit).

    Example:
        >>> f = torch.tensor([[2.0], [0.0], [0.0], [0.0]], dtype=torch.float64)
        >>> moments = activation_moments(torch.stack([(f**p).sum(0) for p in (1, 2, 3, 4)], -1), 4)
        >>> moments["mean"].item(), round(moments["kurtosis"].item(), 3)
        (0.5, 7.111)
    """
    mean, second, third, fourth = (power_sums / num_rows).unbind(-1)
    variance = second - mean.square()
    varies = variance > MIN_RELATIVE_VARIANCE * second
    return {
        "mean": mean,
        "std": variance.clamp_min(0).sqrt(),
        "skew": where_defined(varies, third / variance.pow(1.5)),
        "kurtosis": where_defined(varies, fourth / variance.square()),
    }


def max_cosines(vectors: Float[Tensor, "n d"], block_entries: int = 2**22) -> Float[Tensor, " n"]:
    """For each vector, its largest cosine with any other; NaN if there is no other.

    In blocks: no more than `block_entries` of the [n n] cosines exist at once. A vector of zeros
    has cosine 0 with all.

    Source: SAEBench `calculate_max_cosine_sim`; signed, so opposite vectors are not similar.

    Example:
        >>> max_cosines(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]))
        tensor([0.7071, 0.7071, 0.7071])
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    found = torch.full((len(unit),), -torch.inf, device=unit.device)
    for block in torch.arange(len(unit), device=unit.device).split(
        max(1, block_entries // len(unit))
    ):
        cosines = unit[block] @ unit.T
        cosines[torch.arange(len(block)), block] = -torch.inf
        found[block] = cosines.amax(1)
    return where_defined(found > -torch.inf, found)
