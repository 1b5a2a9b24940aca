"""`compare`: dictionaries of several seeds, sizes, layers or penalties against each other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from sae.activations.rows import Rows
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SIGNED
from sae.errors import DegenerateInputError
from sae.evals.base import PLACING, Evaluation, Measured, register
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
from sae.settings import setting
from sae.tables import Column, Table, Type
from sae.types import Split

_PAIR: dict[str, tuple[Type, str]] = {
    "first": ("string", ""), "second": ("string", ""), "latents": ("int64", ""),
    "other_latents": ("int64", ""), "absolute": ("int64", ""), "mmcs": ("float64", "cosine"),
    "share_above": ("float64", "share"), "matched_cosine": ("float64", "cosine"),
    "matched_share": ("float64", "share"), "max_correlation": ("float64", "correlation"),
    "correlated_latents": ("int64", ""),
}  # fmt: skip
_LATENT: dict[str, tuple[Type, str]] = {
    "first": ("string", ""), "second": ("string", ""), "latent": ("int64", ""),
    "nearest": ("int64", ""), "cosine": ("float64", "cosine"), "matched": ("int64", ""),
    "matched_cosine": ("float64", "cosine"), "correlated": ("int64", ""),
    "correlation": ("float64", "correlation"),
}  # fmt: skip


@register
class Compare(Evaluation):
    """Cosines of the atoms and correlations of the latents of every ordered pair of SAEs.

    Table `pairs` has a row per ordered pair, table `latents` one per latent of its first SAE: the
    nearest atom of the second one, the partner in the one-to-one matching, the latent that fires
    most alike. docs/guides/compare.md explains the columns; missing: not comparable.
    """

    name: ClassVar[str] = "compare"
    takes: ClassVar[Literal["one", "several", "both"]] = "several"
    least: ClassVar[int] = 2
    unused: ClassVar[tuple[str, ...]] = PLACING
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

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Compare every SAE with every other one."""
        pairs: list[dict[str, Any]] = []
        latents: list[dict[str, np.ndarray]] = []
        steps = len(subjects) * (len(subjects) - 1) // 2
        with progress("compare", steps, "pairs") as advance:
            for first, second in combinations(subjects, 2):
                for values, of_latents in self._both_ways(first, second, on):
                    pairs.append(values)
                    latents.append(of_latents)
                advance(1)
        columns = {
            name: Column(kind, unit, np.concatenate([one[name] for one in latents]))
            for name, (kind, unit) in _LATENT.items()
        }
        return Measured(
            metrics={},
            tokens={"saes": len(subjects), "pairs": len(pairs)},
            details={"names": [one.name for one in subjects]},
            tables={"pairs": Table.of(_PAIR, pairs), "latents": Table(columns)},
        )

    def describe(self, subjects: Sequence[PlacedSAE], on: Split) -> dict[str, Any]:
        """Versions and machine, and all SAEs by name."""
        saes = {one.name: {**asdict(one.sae.config), "metadata": one.sae.metadata}
                for one in subjects}  # fmt: skip
        return provenance() | {"saes": saes}

    def _both_ways(
        self, first: PlacedSAE, second: PlacedSAE, on: Split
    ) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        """Values of a pair and columns of its latents, in both directions."""
        a, b = first.sae, second.sae
        absolute = a.config.activation in SIGNED or b.config.activation in SIGNED
        comparable = a.d_out == b.d_out
        matching = None
        if comparable and max(a.d_sae, b.d_sae) <= self.match_latents:
            matching = match(a.W_dec, b.W_dec, absolute)
        batches = None
        if self.correlations and same_vectors(a, b):
            first.prepare(on)
            batches = self._batches(first.rows(on), a.device)
        for one, other in ((first, second), (second, first)):
            nearest = max_cosine(one.sae.W_dec, other.sae.W_dec, absolute) if comparable else None
            correlated = None
            if batches is not None:
                correlated = _correlated(one.sae, other.sae, batches, absolute)
            turned = matching
            if matching is not None and one is second:
                turned = Matching(matching.second, matching.first, matching.cosine)
            names = {"first": one.name, "second": other.name}
            values = {
                "latents": one.sae.d_sae, "other_latents": other.sae.d_sae,
                "absolute": int(absolute), **self._values(nearest, matching, correlated),
            }  # fmt: skip
            columns = _latent_columns(one.sae.d_sae, nearest, turned, correlated)
            named = {key: np.full(one.sae.d_sae, name, object) for key, name in names.items()}
            yield names | values, named | columns

    def _values(
        self, nearest: Nearest | None, matching: Matching | None, correlated: Nearest | None
    ) -> dict[str, float | int | None]:
        values: dict[str, float | int | None] = {}
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

    def _batches(self, rows: Rows, device: torch.device) -> Callable[[], Iterator[Tensor]]:
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
    one: SAE, other: SAE, batches: Callable[[], Iterator[Tensor]], absolute: bool
) -> Nearest | None:
    try:
        return max_correlation(one.encode, other.encode, batches, absolute)
    except DegenerateInputError:  # the other one is silent
        return None


def _latent_columns(
    count: int, nearest: Nearest | None, matching: Matching | None, correlated: Nearest | None
) -> dict[str, np.ndarray]:
    """Columns with an entry for each latent of the first dictionary; NaN: unknown."""
    numbers = [name for name, (kind, _) in _LATENT.items() if kind != "string"]
    found = {name: np.full(count, np.nan) for name in numbers}
    found["latent"] = np.arange(count)
    if nearest is not None:
        found["nearest"], found["cosine"] = nearest.index.cpu().numpy(), nearest.value.cpu().numpy()
    if matching is not None:
        first = matching.first.cpu().numpy()
        found["matched"][first] = matching.second.cpu().numpy()
        found["matched_cosine"][first] = matching.cosine.cpu().numpy()
    if correlated is not None:
        varies = correlated.value.isfinite().cpu().numpy()  # the others never vary
        found["correlated"][varies] = correlated.index.cpu().numpy()[varies]
        found["correlation"][varies] = correlated.value.cpu().numpy()[varies]
    return found


def same_vectors(a: SAE, b: SAE) -> bool:
    """True if both were made for the same point of the same LM on the same test text."""
    found = []
    for sae in (a, b):
        made_of: Any = sae.metadata.get("activations")
        if not isinstance(made_of, Mapping):
            return False
        stores = made_of.get("stores")
        test = stores.get("test") if isinstance(stores, Mapping) else made_of.get("key")
        found.append((made_of.get("point"), test))
    return found[0] == found[1] and found[0][1] is not None
