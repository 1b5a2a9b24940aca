"""`compare`: dictionaries against each other, across seeds, sizes, layers, penalties, checkpoints.

Unlike the other evaluations it takes several SAEs, so it is not among `EVALS`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sae.activations.rows import Rows
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError, DegenerateInputError
from sae.evals.build import prepare_test, source_of
from sae.language.fetch import WheelFile
from sae.metrics.similarity import (
    Matching,
    Nearest,
    match,
    max_correlation,
    max_cosine,
    share_above,
)
from sae.progress import progress
from sae.provenance import provenance
from sae.settings import Settings, setting

SIGNED = ("identity", "abs_topk")
"""Activations whose latents have no sign of their own: of them only |cosine| means something."""


@dataclass(frozen=True)
class Pair:
    """One dictionary seen from another; all numbers but those of the matching have a direction.

    Attributes:
        first: Name of the dictionary whose latents are looked at.
        second: Name of the one that they are looked for in.
        values: Numbers by name; None where undefined. docs/compare.md says what they are.
        nearest: For every latent of `first` the nearest atom of `second`; None: widths differ.
        matching: One-to-one pairs; None: widths differ, or too many latents.
        correlated: For every latent of `first` the latent of `second` that fires most alike; None:
            they do not read the same vectors.
    """

    first: str
    second: str
    values: dict[str, float | int | None]
    nearest: Nearest | None = None
    matching: Matching | None = None
    correlated: Nearest | None = None


@dataclass(frozen=True)
class Compared:
    """All ordered pairs of some dictionaries."""

    names: list[str]
    pairs: list[Pair]
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)


class Compare(Settings):
    """Settings of a comparison."""

    where = "eval.compare."

    correlations: bool = setting(True, help="also of firing, between SAEs that read the same point")
    num_tokens: int = setting(
        16_384, ge=1, help="test vectors that correlations are computed on, the first ones"
    )
    matched_above: float = setting(
        0.9, gt=0, lt=1, help="cosine above which two atoms count as the same"
    )
    match_latents: int = setting(
        16_384,
        ge=1,
        help="latents up to which the one-to-one matching is made; it grows with the cube",
    )
    batch_rows: int = setting(
        1024, ge=1, help="vectors encoded at once; decides memory, not results"
    )

    def run(
        self,
        saes: Mapping[str, SAE],
        device: str = "cpu",
        rows_of: Callable[[SAE, str], Rows] | None = None,
    ) -> Compared:
        """Compare every dictionary with every other one.

        Args:
            saes: By name.
            device: Where they encode.
            rows_of: Gives the test vectors of an SAE; default: those it was saved with.

        Raises:
            ConfigError: If there are fewer than two.
        """
        if len(saes) < 2:
            raise ConfigError(
                f"compare was given {len(saes)} SAE, and takes at least 2: "
                "python evaluate.py 'run=[a,b]' 'eval=[compare]'."
            )
        names, pairs = list(saes), []
        rows_of = cache(rows_of or rows_of_test_split)
        steps = len(names) * (len(names) - 1) // 2
        with progress("compare", steps, "pairs") as advance:
            for i, first in enumerate(names):
                for second in names[i + 1 :]:
                    pairs += self._both_ways(
                        first, second, saes, device, rows_of or rows_of_test_split
                    )
                    advance(1)
        sources = {
            name: {**asdict(sae.config), "metadata": sae.metadata} for name, sae in saes.items()
        }
        return Compared(names, pairs, self.model_dump(), provenance() | {"saes": sources})

    def _both_ways(
        self,
        first: str,
        second: str,
        saes: Mapping[str, SAE],
        device: str,
        rows_of: Callable[[SAE, str], Rows],
    ) -> list[Pair]:
        a, b = saes[first], saes[second]
        absolute = a.config.activation in SIGNED or b.config.activation in SIGNED
        comparable = a.d_out == b.d_out
        matching = None
        if comparable and max(a.d_sae, b.d_sae) <= self.match_latents:
            matching = match(a.W_dec, b.W_dec, absolute)
        batches = None
        if self.correlations and same_vectors(a, b):
            batches = self._batches(rows_of(a, device), device)
        pairs = []
        for one, other, names in ((a, b, (first, second)), (b, a, (second, first))):
            nearest = max_cosine(one.W_dec, other.W_dec, absolute) if comparable else None
            correlated = None
            if batches is not None:
                correlated = _correlated(one, other, batches, absolute, device)
            turned = matching
            if matching is not None and one is b:
                turned = Matching(matching.second, matching.first, matching.cosine)
            values = self._values(one, other, absolute, nearest, matching, correlated)
            pairs.append(Pair(*names, values, nearest, turned, correlated))
        return pairs

    def _values(
        self,
        one: SAE,
        other: SAE,
        absolute: bool,
        nearest: Nearest | None,
        matching: Matching | None,
        correlated: Nearest | None,
    ) -> dict[str, float | int | None]:
        values: dict[str, float | int | None] = {
            "latents": one.d_sae, "other_latents": other.d_sae, "absolute": int(absolute),
            "mmcs": None, "share_above": None, "matched_cosine": None, "matched_share": None,
            "max_correlation": None, "correlated_latents": None,
        }  # fmt: skip
        if nearest is not None:
            values["mmcs"] = float(nearest.value.double().mean())
            values["share_above"] = share_above(nearest.value, self.matched_above)
        if matching is not None:
            values["matched_cosine"] = float(matching.cosine.double().mean())
            values["matched_share"] = share_above(matching.cosine, self.matched_above)
        if correlated is not None:
            known = correlated.value[correlated.value.isfinite()]
            values["max_correlation"] = float(known.double().mean()) if len(known) else None
            values["correlated_latents"] = len(known)
        return values

    def _batches(self, rows: Rows, device: str) -> Callable[[], Iterator[Tensor]]:
        def batches() -> Iterator[Tensor]:
            left = self.num_tokens
            for chunk in range(rows.num_chunks):
                for x in rows.read(chunk)[:left].float().split(self.batch_rows):
                    left -= len(x)
                    yield x.to(device)
                if left <= 0:
                    return

        return batches


@torch.no_grad()
def _correlated(
    one: SAE, other: SAE, batches: Callable[[], Iterator[Tensor]], absolute: bool, device: str
) -> Nearest | None:
    one, other = one.to(device), other.to(device)
    try:
        return max_correlation(one.encode, other.encode, batches, absolute)
    except DegenerateInputError:  # the other one is silent
        return None


def same_vectors(a: SAE, b: SAE) -> bool:
    """Whether both were made for the same point of the same LM on the same test text."""
    found = []
    for sae in (a, b):
        made_of: Any = sae.metadata.get("activations")
        if not isinstance(made_of, Mapping):
            return False
        stores = made_of.get("stores")
        test = stores.get("test") if isinstance(stores, Mapping) else made_of.get("key")
        found.append((made_of.get("point"), test))
    return found[0] == found[1] and found[0][1] is not None


def rows_of_test_split(sae: SAE, device: str, known: Sequence[WheelFile] = ()) -> Rows:
    """The test vectors that an SAE was saved with, harvested where they are missing."""
    source = source_of(sae, device=device, known=known)
    prepare_test(source)
    return source.split("test")
