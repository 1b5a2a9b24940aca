"""Reconstruction metrics that a few long rows cannot decide, and one that they do."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.functional import (
    RATIO_BINS,
    error_ratios,
    fvu_of_sums,
    fvu_terms,
    median_of_bins,
    ratio_bins,
)
from sae.metrics.grouped import GroupedSums

LIGHT_MEDIANS = 4
"""`fvu_under_4_medians` is over rows whose norm is below so many medians."""
_SUMS = ("rows", "x", "square_norm", "squared_error")


class RobustReconstruction(GroupedSums):
    r"""Metrics beside FVU that show whether an SAE reconstructs only the longest rows.

    - `fvu_median`: median over the rows that count of $\|e\|^2 / \|x - \bar x\|^2$, within 0.6 %;
    - `fvu_under_4_medians`: FVU over those of them that are `short`;
    - `fvu_all_rows`: FVU over all rows, those that are left out included;
    - `left_out`: their share.

    Args:
        mean: Mean of the rows that count, in the LM's own units.
        num_groups: Upper limit to the number of resampled units.

    Example:
        >>> metric = RobustReconstruction(torch.zeros(2))
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [99.0, 0.0]])
        >>> short = torch.tensor([True, True, False])
        >>> metric.update(x, 0.5 * x, counted=short, short=short)
        >>> metric.compute()["fvu_median"], metric.compute()["fvu_under_4_medians"]
        (0.25, 0.25)
    """

    count = "all_rows"
    mean: Tensor
    sum_ratios: Tensor

    def __init__(self, mean: Float[Tensor, " d_in"], num_groups: int = 1024):
        widths = {
            f"{subset}_{name}": len(mean) if name == "x" else None
            for subset in ("all", "short") for name in _SUMS
        }  # fmt: skip
        super().__init__({"ratios": RATIO_BINS, "counted": None, **widths}, num_groups)
        self.register_buffer("mean", mean, persistent=False)

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The four metrics, for any leading axes."""

        def fvu(subset: str) -> Tensor:
            return fvu_of_sums({name: sums[f"{subset}_{name}"] for name in _SUMS})

        return {
            "fvu_median": median_of_bins(sums["ratios"]),
            "fvu_under_4_medians": fvu("short"),
            "fvu_all_rows": fvu("all"),
            "left_out": 1 - sums["counted"] / sums["all_rows"],
        }

    def update(
        self,
        x: Float[Tensor, "batch d_in"],
        x_hat: Float[Tensor, "batch d_in"],
        *,
        counted: Bool[Tensor, " batch"],
        short: Bool[Tensor, " batch"],
        document: Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Add rows.

        Args:
            x: Activations of all rows, in the LM's own units.
            x_hat: Their reconstructions.
            counted: Mask of the rows that count.
            short: Mask of the rows, out of all, that are below `LIGHT_MEDIANS` medians.
            document: Document id of each row, or None when there are none.
        """
        terms = fvu_terms(x, x_hat)
        self.add({f"all_{name}": terms[name] for name in _SUMS}, document)
        self.add({"counted": counted.double()}, document)
        part = counted & short
        documents = None if document is None else document.to(part.device)
        of_part = None if documents is None else documents[part]
        self.add({f"short_{name}": terms[name][part] for name in _SUMS}, of_part)
        ratios = error_ratios(x[counted], x_hat[counted], self.mean)
        group = torch.zeros(len(ratios), dtype=torch.long, device=ratios.device)
        if documents is not None:
            group = documents[counted] % self.num_groups
        one = torch.ones((), dtype=torch.float64, device=ratios.device)
        self.sum_ratios.index_put_((group, ratio_bins(ratios)), one, accumulate=True)
