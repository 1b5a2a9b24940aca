"""Every formula once: pure functions of tensors, for training, metrics, tests and users alike."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae.errors import DegenerateInputError


def input_and_target(
    batch: Float[Tensor, "*batch width"], d_in: int
) -> tuple[Float[Tensor, "*batch d_in"], Float[Tensor, "*batch d_out"]]:
    """What an SAE reads and what it shall give, of vectors that hold both, one beside the other.

    Vectors that are as wide as the input are their own target.

    Example:
        >>> x, target = input_and_target(torch.tensor([[1.0, 2.0, 3.0]]), 2)
        >>> x, target
        (tensor([[1., 2.]]), tensor([[3.]]))
    """
    if batch.shape[-1] == d_in:
        return batch, batch
    return batch[..., :d_in], batch[..., d_in:]


# Metrics
#
# Reconstruction metrics are ratios of sums over rows, so that one formula serves a single batch, a
# stream and a bootstrap resample alike: `reconstruction_terms` says what a row adds to each sum,
# `reconstruction_metrics` makes the metrics of the sums.

DENSE_FREQUENCY = 0.1
"""A latent is dense when it fires on more than this share of the tokens."""

RARE_FREQUENCY = 1e-4
"""A latent is rare when it fires, but on less than this share of the tokens."""

MIN_CE_DENOMINATOR_NATS = 0.01
"""Below this gap between ablated and clean cross entropy, "CE recovered" is undefined."""

_HISTOGRAM_LOG10_EDGES = torch.linspace(-8, 0, 33, dtype=torch.float64)
# Float64 sums of float32 data are exact to about 1e-13; a smaller variance is rounding.
_MIN_RELATIVE_VARIANCE = 1e-12


def fvu(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    r"""Fraction of variance unexplained: $\sum_i\|x_i-\hat x_i\|^2 / \sum_i\|x_i-\bar x\|^2$.

    0 is perfect, 1 is as good as the mean, above 1 is worse. No unit. Computed in float64.

    Args:
        x: Activations. At least two different rows.
        x_hat: Reconstructions, in the scale of `x`.

    Raises:
        DegenerateInputError: If all rows of `x` are equal (the ratio is undefined).

    Source: 1 - R^2 pooled over dimensions (scikit-learn `r2_score`, "variance_weighted").

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> fvu(x, x.mean(0).expand_as(x)).item()
        1.0
    """
    value = reconstruction(x, x_hat)["fvu"]
    if not torch.isfinite(value):
        raise DegenerateInputError(
            f"FVU is undefined for the {len(x)} rows given: it needs finite values and at least "
            "two different rows."
        )
    return value


def mse(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Mean over rows and over d_in of the squared error; unit: that of `x`, squared. Float64.

    Example:
        >>> mse(torch.zeros(1, 4), torch.full((1, 4), 3.0)).item()
        9.0
    """
    return reconstruction(x, x_hat)["mse"]


def cosine(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
    """Mean over rows of the cosine between `x` and `x_hat`; a vector of zeros counts as 0.

    Example:
        >>> cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)
    """
    return reconstruction(x, x_hat)["cosine"]


def l2_ratio(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    """Mean of ||x_hat|| / ||x|| over the rows with x != 0; below 1 means shrinkage.

    Example:
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> l2_ratio(x, torch.tensor([[1.5, 2.0], [1.0, 0.0]])).item()
        0.5
    """
    return reconstruction(x, x_hat)["l2_ratio"]


def relative_bias(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    r"""Relative reconstruction bias $\sum\|\hat x\|^2 / \sum x\cdot\hat x$; 1 means unbiased.

    Below 1 the reconstructions are too short: the value is the factor by which they should be
    divided to fit best.

    Source: Rajamanoharan et al. 2024 (arXiv 2404.16014), equation 10.

    Example:
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> relative_bias(x, x / 2).item()
        0.5
    """
    return reconstruction(x, x_hat)["relative_bias"]


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


def reconstruction(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> dict[str, Float[Tensor, ""]]:
    """All reconstruction metrics of one batch: fvu, mse, cosine, l2_ratio, relative_bias."""
    terms = reconstruction_terms(x, x_hat)
    return reconstruction_metrics({name: term.sum(0) for name, term in terms.items()})


def reconstruction_terms(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> dict[str, Float[Tensor, "batch ..."]]:
    """What every row adds to the sums that `reconstruction_metrics` reads, in float64.

    Float64 before squaring: float32 sums are 0.7 % wrong at mean 300 and 20,000 rows, and the
    variance below is the difference of two large sums.
    """
    x, x_hat = x.double(), x_hat.double()
    norm, norm_hat = x.norm(dim=-1), x_hat.norm(dim=-1)
    dot = (x * x_hat).sum(-1)
    given = norm > 0
    either_zero = ~given | (norm_hat == 0)
    return {
        "rows": torch.ones_like(norm),
        "x": x,
        "square_norm": norm.square(),
        "square_norm_hat": norm_hat.square(),
        "dot": dot,
        "squared_error": (x - x_hat).square().sum(-1),
        "cosine": dot / (norm * norm_hat).masked_fill(either_zero, 1.0),
        "norm_ratio": norm_hat / norm.masked_fill(~given, 1.0) * given,
        "nonzero_rows": given.double(),
    }


def dimension_terms(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> dict[str, Float[Tensor, "batch d_in"]]:
    """What every row adds, beside `reconstruction_terms`, for `fvu_per_dim`. Float64."""
    x = x.double()
    return {"x_square": x.square(), "error_square": (x - x_hat.double()).square()}


def reconstruction_metrics(
    sums: Mapping[str, Float[Tensor, "..."]],
) -> dict[str, Float[Tensor, "..."]]:
    """Metrics of summed `reconstruction_terms`; NaN where one is undefined.

    Args:
        sums: One tensor a term. Leading axes are free (none: one result; resamples of a
            bootstrap: one result each). With sums `"l0"`, `"l1"`, `"norm"`, `"norm_hat"` their
            means are among the results, with the sums of `dimension_terms` also `fvu_per_dim`.
    """
    rows, error = sums["rows"], sums["squared_error"]
    variance = sums["square_norm"] - sums["x"].square().sum(-1) / rows
    varied = variance > _MIN_RELATIVE_VARIANCE * sums["square_norm"]
    metrics = {
        "fvu": _where(varied, error / variance),
        "mse": error / (rows * sums["x"].shape[-1]),
        "cosine": sums["cosine"] / rows,
        "l2_ratio": sums["norm_ratio"] / sums["nonzero_rows"],
        "relative_bias": _where(sums["dot"] != 0, sums["square_norm_hat"] / sums["dot"]),
    }
    metrics |= {
        name: sums[name] / rows for name in ("l0", "l1", "norm", "norm_hat") if name in sums
    }
    if "x_square" in sums:
        metrics["fvu_per_dim"] = fvu_by_dimension(sums).nanmean(-1)
    return metrics


def fvu_by_dimension(sums: Mapping[str, Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
    """FVU of every dimension; NaN for those that do not vary, where it is undefined.

    Its mean over the others is 1 - R^2 of scikit-learn's `r2_score`, "uniform_average": every
    dimension counts the same, however little it varies.

    Args:
        sums: Summed `reconstruction_terms` and `dimension_terms`; leading axes are free.
    """
    square = sums["x_square"]
    variance = square - sums["x"].square() / sums["rows"][..., None]
    return _where(variance > _MIN_RELATIVE_VARIANCE * square, sums["error_square"] / variance)


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
    varies = variance > _MIN_RELATIVE_VARIANCE * second
    return {
        "mean": mean,
        "std": variance.clamp_min(0).sqrt(),
        "skew": _where(varies, third / variance.pow(1.5)),
        "kurtosis": _where(varies, fourth / variance.square()),
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
    return _where(found > -torch.inf, found)


def prediction_mask(
    document: Int[Tensor, "batch ctx"], keep_first: bool = False
) -> Bool[Tensor, "batch ctx-1"]:
    """Which positions make a prediction that counts; the last position of a context makes none.

    A prediction across a document boundary is noise, and position 0 is an attention sink, whose
    prediction counts only with `keep_first`.

    Args:
        document: Document id of every token; the separator belongs to the document it ends.
        keep_first: Count the predictions made at position 0.

    Example:
        >>> prediction_mask(torch.tensor([[0, 0, 0, 1, 1]]))
        tensor([[False,  True, False,  True]])
    """
    mask = document[:, :-1] == document[:, 1:]
    if not keep_first:
        mask[:, :1] = False
    return mask


def next_token_cross_entropy(
    logits: Float[Tensor, "batch ctx vocab"],
    tokens: Int[Tensor, "batch ctx"],
    mask: Bool[Tensor, "batch ctx-1"],
) -> Float[Tensor, " predictions"]:
    """Cross entropy in nats of every prediction that `mask` counts, by float32 log-softmax.

    Example:
        >>> mask = torch.tensor([[True, False]])
        >>> next_token_cross_entropy(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), mask)
        tensor([1.3863])
    """
    return cross_entropy(logits[:, :-1][mask], tokens[:, 1:][mask])


def cross_entropy(
    logits: Float[Tensor, "predictions vocab"], targets: Int[Tensor, " predictions"]
) -> Float[Tensor, " predictions"]:
    """Cross entropy in nats of single predictions, by float32 log-softmax."""
    return _at(torch.log_softmax(logits, -1, dtype=torch.float32), targets)


def kl_divergence(
    clean: Float[Tensor, "*positions vocab"], other: Float[Tensor, "*positions vocab"]
) -> Float[Tensor, "*positions"]:
    """KL(clean || other) in nats of the distributions that two sets of logits give.

    By log-softmax in float32: the form softmax -> log is NaN at extreme logits. Rounding below 0
    is cut off.

    Example:
        >>> kl_divergence(torch.tensor([200.0, -200.0]), torch.tensor([-200.0, 200.0]))
        tensor(400.)
    """
    log_p, log_q = (torch.log_softmax(logits, -1, dtype=torch.float32) for logits in (clean, other))
    if other.requires_grad:  # `_kl` writes into what a gradient needs
        return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    return _kl(log_p, log_q)


def compare_predictions(
    clean: Float[Tensor, "predictions vocab"],
    other: Float[Tensor, "predictions vocab"],
    targets: Int[Tensor, " predictions"],
) -> dict[str, Shaped[Tensor, " predictions"]]:
    """Cross entropy under both sets of logits, KL and top-1 agreement of every prediction.

    The same as `next_token_cross_entropy`, `kl_divergence` and `top1_agreement`, of one
    log-softmax each: over a vocabulary of 50,000 that decides the time.

    Returns:
        `clean` and `other` (nats), `kl` (nats) and `top1`.

    Example:
        >>> clean, other = torch.zeros(1, 2), torch.tensor([[0.0, -200.0]])
        >>> compare_predictions(clean, other, torch.tensor([1]))["other"]
        tensor([200.])
    """
    log_p = torch.log_softmax(clean, -1, dtype=torch.float32)
    log_q = torch.log_softmax(other, -1, dtype=torch.float32)
    return {
        "clean": _at(log_p, targets),
        "other": _at(log_q, targets),
        "top1": top1_agreement(log_p, log_q),
        "kl": _kl(log_p, log_q),
    }


def _at(log_p: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return -log_p.gather(1, targets.long()[:, None])[:, 0]


def _kl(log_p: Float[Tensor, "*n vocab"], log_q: Float[Tensor, "*n vocab"]) -> Float[Tensor, "*n"]:
    """KL of log-probabilities, which it overwrites: fresh memory of this size is slow."""
    difference = log_q.neg_().add_(log_p)
    return log_p.exp_().mul_(difference).sum(-1).clamp_min(0)


def top1_agreement(
    clean: Float[Tensor, "*positions vocab"], other: Float[Tensor, "*positions vocab"]
) -> Bool[Tensor, "*positions"]:
    """Whether both sets of logits name the same token as the most likely."""
    return clean.argmax(-1) == other.argmax(-1)


def ce_recovered(
    clean: Shaped[Tensor, "..."], sae: Shaped[Tensor, "..."], ablated: Shaped[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Share of the loss caused by an ablation that the SAE gives back.

    (ablated - sae) / (ablated - clean) of mean cross entropies in nats: 1 for a perfect SAE, 0
    for one that is as bad as the ablation; NaN where the denominator is under 0.01 nat.

    Example:
        >>> ce_recovered(torch.tensor(3.0), torch.tensor(3.5), torch.tensor(8.0)).item()
        0.8999999761581421
    """
    denominator = ablated - clean
    return _where(denominator >= MIN_CE_DENOMINATOR_NATS, (ablated - sae) / denominator)


def perplexity(cross_entropy: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Perplexity: exp of a mean cross entropy in nats."""
    return cross_entropy.exp()


def _where(defined: Bool[Tensor, "..."], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return value.masked_fill(~defined, torch.nan)
