"""Statistics of a split of activations: mean, spread, scale, distribution of norms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sae.errors import DegenerateInputError

Normalize = Literal["spread", "mean_square", "none"]
ORDINARY = 0.5
"""Standard deviation of ordinary entries after `normalize=spread`.

About what the mean square gives at layer 4 of the default LM (.55), where l1, thresholds, bandwidth
and start biases were chosen."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass(frozen=True)
class Stats:
    """Statistics of a split, in the LM's own units and float64.

    Attributes:
        num_rows: Number of vectors.
        mean: Mean vector.
        mean_square_norm: Mean over rows of ||x||^2.
        norm_quantiles: Distribution of ||x||: keys `min`, `max` (exact) and `0.01` ... `0.99`
            (within 0.6 %, from a histogram).
    """

    num_rows: int
    mean: Float64[np.ndarray, " d_in"]
    mean_square_norm: float
    norm_quantiles: Mapping[str, float]

    @property
    def scale(self) -> float:
        """Factor that makes the mean of ||x||^2 equal d_in.

        Raises:
            DegenerateInputError: If every activation is zero.
        """
        if not self.mean_square_norm > 0:
            raise DegenerateInputError(
                "All activations are zero, so no scale brings them to unit mean square. "
                "Choose another layer or site, or normalize=none."
            )
        return math.sqrt(len(self.mean) / self.mean_square_norm)

    @property
    def spread(self) -> float:
        """Standard deviation of the entries of ordinary rows, from the median of ||x||.

        A few long rows can hold most of `mean_square_norm`. They also move the mean; where it is as
        long as the median row, a tenth of the median stands for what is left. Where most rows are
        zero, or norms are not known, the root mean square stands for the median.
        """
        median = self.norm_quantiles.get("0.5", 0.0) or math.sqrt(self.mean_square_norm)
        mean = float(np.linalg.norm(self.mean))
        square = max(median**2 - mean**2, (median / 10) ** 2)
        return math.sqrt(square / len(self.mean))

    def scale_by(self, normalize: Normalize) -> float:
        """Factor between the LM's own units and what an SAE is trained on.

        `spread`: the entries of ordinary rows get the standard deviation `ORDINARY`; `mean_square`:
        the mean of ||x||^2 becomes d_in; `none`: 1.

        Raises:
            DegenerateInputError: If every activation is zero, unless there is nothing to scale.
        """
        if normalize == "none":
            return 1.0
        scale = self.scale  # refuses zeros
        return scale if normalize == "mean_square" else ORDINARY / self.spread

    def to_json(self) -> dict[str, object]:
        """Plain types; floats survive JSON exactly."""
        return asdict(self) | {"mean": self.mean.tolist(), "scale": self._scale_or_none()}

    @classmethod
    def from_json(cls, content: Mapping) -> "Stats":
        """Undo `to_json`."""
        return cls(
            num_rows=int(content["num_rows"]),
            mean=np.asarray(content["mean"], dtype=np.float64),
            mean_square_norm=float(content["mean_square_norm"]),
            norm_quantiles={key: float(value) for key, value in content["norm_quantiles"].items()},
        )

    def _scale_or_none(self) -> float | None:
        return self.scale if self.mean_square_norm > 0 else None


class RunningStats:
    """Statistics of rows that arrive chunk by chunk.

    The same chunks in the same order give the same bits, so a harvest that was killed and
    continued reads its finished chunks back and ends with the statistics of one that was not.
    Memory is independent of the number of rows: norms are counted in bins 1.1 % wide.

    Example:
        >>> running = RunningStats(2)
        >>> running.update(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> stats = running.result()
        >>> stats.mean, stats.mean_square_norm, stats.norm_quantiles["max"]
        (array([1.5, 2.5]), 13.0, 5.0)
    """

    _BINS_PER_OCTAVE = 64
    _LOWEST, _HIGHEST = -64, 128  # octaves: 2^-64 to 2^128 holds every float32 norm worth a bin

    def __init__(self, d_in: int):
        self._num_rows = 0
        self._sum = np.zeros(d_in)
        self._sum_square_norm = 0.0
        self._min, self._max = math.inf, 0.0
        self._bins = np.zeros((self._HIGHEST - self._LOWEST) * self._BINS_PER_OCTAVE, np.int64)

    def update(self, rows: Float[Tensor, "rows d_in"]) -> None:
        """Count a chunk of rows. All values must be finite."""
        if not len(rows):
            return
        # NumPy, because its sums do not depend on the number of threads.
        x = rows.to(torch.float64).numpy()
        square_norm = np.einsum("rd,rd->r", x, x)
        norm = np.sqrt(square_norm)
        self._num_rows += len(x)
        self._sum += x.sum(axis=0)
        self._sum_square_norm += float(square_norm.sum())
        self._min, self._max = min(self._min, norm.min()), max(self._max, norm.max())
        octave = np.log2(np.maximum(norm, 2.0**self._LOWEST)) - self._LOWEST
        index = np.minimum((octave * self._BINS_PER_OCTAVE).astype(np.int64), len(self._bins) - 1)
        self._bins += np.bincount(index, minlength=len(self._bins))

    def result(self) -> Stats:
        """The statistics of all rows so far (zeros if there were none)."""
        n = max(self._num_rows, 1)
        return Stats(self._num_rows, self._sum / n, self._sum_square_norm / n, self._quantiles())

    def _quantiles(self) -> dict[str, float]:
        if not self._num_rows:
            return {}
        cumulative = np.cumsum(self._bins)
        found = {"min": float(self._min)}
        for q in QUANTILES:
            # The bin of the row in the middle of its rank; its centre, cut to the exact extremes.
            index = int(np.searchsorted(cumulative, q * (self._num_rows - 1) + 0.5))
            # The lowest bin holds zeros.
            centre = 2.0 ** ((index + 0.5) / self._BINS_PER_OCTAVE + self._LOWEST) if index else 0.0
            found[str(q)] = float(min(max(centre, self._min), self._max))
        return found | {"max": float(self._max)}


def all_finite(x: Float[Tensor, "rows d_in"]) -> bool:
    """True if no value is NaN or infinite; several times faster than `isfinite(x).all()`."""
    return bool(torch.stack(x.aminmax()).isfinite().all())


def joined_stats(stats: Sequence[Stats]) -> Stats:
    """Statistics of joined vectors; the distribution of their norms is not known.

    Statistics of one point stay as they are.
    """
    if len(stats) == 1:
        return stats[0]
    mean = np.concatenate([one.mean for one in stats])
    return Stats(stats[0].num_rows, mean, sum(one.mean_square_norm for one in stats), {})
