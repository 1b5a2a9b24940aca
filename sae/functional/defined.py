"""Ratios that are NaN where they are not defined."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Float64 sums of float32 data are exact to about 1e-13.
MIN_RELATIVE_VARIANCE = 1e-12
"""A variance below this share of the mean square is rounding."""


def where_defined(
    defined: Bool[Tensor, "..."], value: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """The value, NaN where it is not defined."""
    return value.masked_fill(~defined, torch.nan)
