"""Quality of reconstructions of activations, over a stream of batches."""

from collections.abc import Mapping

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sae.functional import (
    dimension_terms,
    fvu_by_dimension,
    reconstruction_metrics,
    reconstruction_terms,
)
from sae.metrics.grouped import GroupedSums


class Reconstruction(GroupedSums):
    """FVU, MSE, cosine, L2 ratio, relative bias and L0 of all rows seen.

    The total equals the formulas of `sae.functional` on all rows at once, for any split into
    batches. No shift is needed against cancellation: float64 sums keep nine digits of the
    variance of data whose mean is 1,000 times its deviation.

    Args:
        d_in: Width of the activations.
        num_groups: Upper limit to the number of resampled units.
        full: Also L1, mean norms and `fvu_per_dim`, for two more sums [num_groups d_in].

    Example:
        >>> import torch
        >>> metric = Reconstruction(d_in=2)
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> metric.update(x, x.mean(0).expand_as(x), torch.tensor([1, 2]))
        >>> metric.compute()["fvu"], metric.compute()["l0"]
        (1.0, 1.5)
    """

    count = "rows"

    def __init__(self, d_in: int, num_groups: int = 1024, full: bool = False):
        scalars = ("rows", "square_norm", "square_norm_hat", "dot", "squared_error", "cosine",
                   "norm_ratio", "nonzero_rows", "l0")  # fmt: skip
        more: dict[str, int | None] = {}
        if full:
            more |= dict.fromkeys(("l1", "norm", "norm_hat")) | dict.fromkeys(
                ("x_square", "error_square"), d_in
            )
        super().__init__(dict.fromkeys(scalars) | {"x": d_in} | more, num_groups)
        self.full = full

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `sae.functional.reconstruction_metrics`."""
        return reconstruction_metrics(sums)

    def update(
        self,
        x: Float[Tensor, "batch d_in"],
        x_hat: Float[Tensor, "batch d_in"],
        code_l0: Shaped[Tensor, " batch"],
        document: Int[Tensor, " batch"] | None = None,
        code_l1: Float[Tensor, " batch"] | None = None,
    ) -> None:
        """Add rows.

        Args:
            x: Activations, in the LM's own units.
            x_hat: Their reconstructions.
            code_l0: Number of latents that fire for each row.
            document: Document id of each row, or None when there are none (no intervals then).
            code_l1: Sum of |f| of each row; read with `full` only, and then needed.
        """
        terms = reconstruction_terms(x, x_hat) | {"l0": code_l0.double()}
        if self.full:
            assert code_l1 is not None
            terms |= dimension_terms(x, x_hat) | {"l1": code_l1}
            terms |= {name: terms[f"square_{name}"].sqrt() for name in ("norm", "norm_hat")}
        self.add(terms, document)

    def constant_dimensions(self) -> int:
        """Number of dimensions that do not vary, and so are left out of `fvu_per_dim`."""
        names = ("rows", "x", "x_square", "error_square")
        by_dimension = fvu_by_dimension({name: self._sum(name).sum(0) for name in names})
        return int(by_dimension.isnan().sum().item())
