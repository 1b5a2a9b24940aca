"""Quality of a reconstruction: ratios of sums over rows.

One formula serves a single batch, a stream and a bootstrap resample alike: `reconstruction_terms`
says what a row adds to each sum, `reconstruction_metrics` makes the metrics of the sums.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sae.errors import DegenerateInputError
from sae.functional.defined import MIN_RELATIVE_VARIANCE, where_defined


def input_and_target(
    batch: Float[Tensor, "*batch width"], d_in: int
) -> tuple[Float[Tensor, "*batch d_in"], Float[Tensor, "*batch d_out"]]:
    """Split vectors that concatenate input and target of an SAE into the two.

    Vectors that are as wide as the input are their own target.

    Example:
        >>> x, target = input_and_target(torch.tensor([[1.0, 2.0, 3.0]]), 2)
        >>> x, target
        (tensor([[1., 2.]]), tensor([[3.]]))
    """
    if batch.shape[-1] == d_in:
        return batch, batch
    return batch[..., :d_in], batch[..., d_in:]


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


def reconstruction(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> dict[str, Float[Tensor, ""]]:
    """All reconstruction metrics of one batch: fvu, mse, cosine, l2_ratio, relative_bias."""
    terms = reconstruction_terms(x, x_hat)
    return reconstruction_metrics({name: term.sum(0) for name, term in terms.items()})


def reconstruction_terms(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> dict[str, Float[Tensor, "batch ..."]]:
    """Terms that every row adds to the sums that `reconstruction_metrics` reads, in float64.

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
    """Terms that every row adds, beside `reconstruction_terms`, for `fvu_per_dim`. Float64."""
    x = x.double()
    return {"x_square": x.square(), "error_square": (x - x_hat.double()).square()}


def reconstruction_metrics(
    sums: Mapping[str, Float[Tensor, "..."]],
) -> dict[str, Float[Tensor, "..."]]:
    """Metrics of summed `reconstruction_terms`; NaN where one is undefined.

    Args:
        sums: One tensor for each term. Leading axes are free (none: one result; resamples of a
            bootstrap: one result each). With sums `"l0"`, `"l1"`, `"norm"`, `"norm_hat"` their
            means are among the results, with the sums of `dimension_terms` also `fvu_per_dim`.
    """
    rows = sums["rows"]
    metrics = {
        "fvu": fvu_of_sums(sums),
        "mse": sums["squared_error"] / (rows * sums["x"].shape[-1]),
        "cosine": sums["cosine"] / rows,
        "l2_ratio": sums["norm_ratio"] / sums["nonzero_rows"],
        "relative_bias": where_defined(sums["dot"] != 0, sums["square_norm_hat"] / sums["dot"]),
    }
    metrics |= {
        name: sums[name] / rows for name in ("l0", "l1", "norm", "norm_hat") if name in sums
    }
    if "x_square" in sums:
        metrics["fvu_per_dim"] = fvu_by_dimension(sums).nanmean(-1)
    return metrics


def fvu_terms(
    x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]
) -> dict[str, Float[Tensor, "batch ..."]]:
    """The `reconstruction_terms` that `fvu_of_sums` reads, alone."""
    x = x.double()
    return {
        "rows": torch.ones_like(x[:, 0]),
        "x": x,
        "square_norm": x.square().sum(-1),
        "squared_error": (x - x_hat.double()).square().sum(-1),
    }


def fvu_of_sums(sums: Mapping[str, Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
    """FVU of summed `fvu_terms`; NaN where the rows do not vary."""
    variance = sums["square_norm"] - sums["x"].square().sum(-1) / sums["rows"]
    varied = variance > MIN_RELATIVE_VARIANCE * sums["square_norm"]
    return where_defined(varied, sums["squared_error"] / variance)


def fvu_by_dimension(sums: Mapping[str, Float[Tensor, "..."]]) -> Float[Tensor, "..."]:
    """FVU of every dimension; NaN for those that do not vary, where it is undefined.

    Its mean over the others is 1 - R^2 of scikit-learn's `r2_score`, "uniform_average": every
    dimension counts the same, however little it varies.

    Args:
        sums: Summed `reconstruction_terms` and `dimension_terms`; leading axes are free.
    """
    square = sums["x_square"]
    variance = square - sums["x"].square() / sums["rows"][..., None]
    return where_defined(variance > MIN_RELATIVE_VARIANCE * square, sums["error_square"] / variance)
