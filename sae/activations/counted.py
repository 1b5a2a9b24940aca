"""Rows that count: not those of special tokens, and not those with massive activations.

A few rows of an LM (separators, "sinks") are tens to hundreds of times as long as the rest and lie
along one direction. They would decide every mean, and any SAE that hits them would look good. One
rule says which rows are left out of training, scale, statistics and metrics; where a reconstruction
is put into the LM, it leaves the activations of these rows as they are.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.errors import ConfigError

Special = Literal["drop", "keep", "all"]
EVERY_ROW = "special=keep max_norm=null"
"""The rule of runs that leave no row out, as all did before there was one."""


@dataclass(frozen=True)
class RowRule:
    """The settings.

    Args:
        special: Special tokens whose rows are left out. `drop`: the tokenizer's separator, BOS, EOS
            and pad token; `all`: also its additional special tokens; `keep`: none.
        max_norm: Rows are left out whose norm is above so many medians; None: none.

    Raises:
        ConfigError: If a value is not allowed.

    Example:
        >>> str(RowRule()), str(RowRule("keep", None))
        ('special=drop max_norm=10', 'special=keep max_norm=null')
    """

    special: Special = "drop"
    max_norm: float | None = 10.0

    def __post_init__(self) -> None:
        if self.special not in get_args(Special):
            allowed = ", ".join(get_args(Special))
            raise ConfigError(
                f"activations.special={self.special!r} is unknown. Choose one of {allowed}."
            )
        if self.max_norm is not None and not self.max_norm > 0:
            raise ConfigError(
                f"activations.max_norm={self.max_norm} must be above 0, or null for no cut."
            )

    def __str__(self) -> str:
        cut = "null" if self.max_norm is None else f"{self.max_norm:g}"
        return f"special={self.special} max_norm={cut}"

    @property
    def every_row(self) -> bool:
        """True if no row is left out."""
        return str(self) == EVERY_ROW

    def identity(self) -> dict[str, str]:
        """Entry for a run's identity; empty if no row is left out."""
        return {} if self.every_row else {"rows": str(self)}

    def limit(self, median: float) -> float:
        """Norm up to which a row counts; infinite where the median is 0 (sparse synthetic rows).

        Example:
            >>> RowRule().limit(2.5), RowRule().limit(0.0)
            (25.0, inf)
        """
        return self.max_norm * median if self.max_norm is not None and median > 0 else math.inf


@dataclass(frozen=True)
class Counted:
    """A rule with its limits at the points of an SAE, measured.

    They are saved with the SAE, so that one absolute norm decides about training, validation and
    test text and any prompt.

    Args:
        rule: The settings.
        special_ids: Ids of the special tokens that are left out.
        limits: Largest norm that counts at each point (`str(point)`; `x` for activations that come
            from no known LM), in the order of the points in a joined vector.
        median_of: The split whose median norms the limits are multiples of.

    Example:
        >>> counted = Counted(RowRule(), (0,), {"resid.4": 10.0})
        >>> x = torch.tensor([[3.0, 4.0], [30.0, 40.0], [1.0, 0.0]])
        >>> counted.mask([x], torch.tensor([5, 5, 0]))
        tensor([ True, False, False])
    """

    rule: RowRule
    special_ids: tuple[int, ...]
    limits: Mapping[str, float]
    median_of: str = "train"

    def mask(
        self, parts: Sequence[Float[Tensor, "*batch _"]], tokens: Int[Tensor, "*batch"] | None
    ) -> Bool[Tensor, "*batch"]:
        """Mask of the rows that count: those that count at every point.

        Args:
            parts: Activations in the LM's own units, at each point of `limits`.
            tokens: Token of each row; None where there are none.
        """
        counts = within(parts, tuple(self.limits.values()))
        return counts if tokens is None else counts & self.ordinary(tokens.to(counts.device))

    def ordinary(self, tokens: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch"]:
        """Mask of the tokens that are not among the special ones."""
        ids = torch.tensor(self.special_ids, dtype=tokens.dtype, device=tokens.device)
        return ~torch.isin(tokens, ids)

    def at(self, names: Iterable[object]) -> "Counted":
        """This rule at some of the points only."""
        limits = {str(name): self.limits[str(name)] for name in names}
        return Counted(self.rule, self.special_ids, limits, self.median_of)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite limit becomes null."""
        limits = {name: v if math.isfinite(v) else None for name, v in self.limits.items()}
        return {
            **asdict(self.rule), "special_ids": list(self.special_ids), "limits": limits,
            "median_of": self.median_of,
        }  # fmt: skip


def within(
    parts: Sequence[Float[Tensor, "*batch _"]], limits: Sequence[float]
) -> Bool[Tensor, "*batch"]:
    """Mask of vectors with norms up to a limit in every part."""
    found = torch.ones(parts[0].shape[:-1], dtype=torch.bool, device=parts[0].device)
    for part, limit in zip(parts, limits, strict=True):
        if math.isfinite(limit):
            found &= part.float().norm(dim=-1) <= limit
    return found


def limits_from_json(content: Mapping[str, float | None]) -> dict[str, float]:
    """The limits in what `Counted.to_json` gave.

    Example:
        >>> limits_from_json({"resid.4": 12.5, "mlp.4": None})
        {'resid.4': 12.5, 'mlp.4': inf}
    """
    return {name: math.inf if limit is None else limit for name, limit in content.items()}
