"""`recovery`: how many of the known features of a synthetic world a dictionary has found."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.counted_rows import all_rows
from sae.activations.superposition import SuperpositionRows
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SIGNED
from sae.errors import ConfigError
from sae.evals.base import Measured, Resampled, estimates, register
from sae.metrics.bootstrap import Interval, bootstrap_intervals
from sae.metrics.similarity import match
from sae.settings import setting
from sae.synthetic import World
from sae.types import Split


@register
class RecoveryEval(Resampled):
    """Cosines between true features and atoms, both ways and one to one; FVU and L0 beside them.

    An SAE can explain most of the variance with few of the features (arXiv 2602.14111): read these
    numbers together.
    """

    name: ClassVar[str] = "recovery"
    needs: ClassVar[frozenset[str]] = frozenset({"truth"})
    threshold: float = setting(
        0.9, gt=0, lt=1, help="cosine above which a feature counts as recovered, an atom as true"
    )
    batch_rows: int = setting(
        4096, ge=1, help="vectors encoded at once; decides memory, not results"
    )

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure the dictionary against the truth, and the whole split."""
        (one,) = subjects
        sae, (world, rows) = one.sae, truth_of(one, on)
        from sae.evals.streamed import measure  # torchmetrics takes seconds

        seen = measure(sae, one.rows(on), self.batch_rows)
        reconstruction, firing = seen.reconstruction, seen.firing
        frequencies = firing.frequencies
        cosines = cosines_of(world, sae)
        best, atom = cosines.amax(1), partners(world, sae)
        matched = cosines.gather(1, atom.clamp(min=0)[:, None])[:, 0].masked_fill(atom < 0, 0)
        atoms = cosines.amax(0)
        live = frequencies.cpu() > 0
        counted, pairs = count_truth(sae, rows, cosines.argmax(1), self.batch_rows)
        by_feature = {
            "mmcs_features": best, "matched_cosine": matched,
            "recovered": best > self.threshold, "recovered_matched": matched > self.threshold,
        }  # fmt: skip
        of_live = atoms[live] <= self.threshold
        groups = [by_feature, {"mmcs_atoms": atoms}, {"false_atoms": of_live}]
        found = [self._means(values) for values in groups]
        found.append(self._ratio("absorption", pairs["failed"], pairs["events"]))
        measured = reconstruction.compute()
        beside = {"fvu": measured["fvu"], "l0": measured["l0"], "silent": 1 - _mean(live)}
        intervals = reconstruction.intervals(**self.bootstrap.model_dump())
        values = {name: value for group, _ in found for name, value in group.items()}
        for _, group in found:
            intervals |= group
        return Measured(
            metrics=estimates(values | beside, intervals),
            tokens={"vectors": rows.num_rows, "features": len(best), "atoms": len(atoms)},
            details={
                "by_frequency": by_frequency(counted / rows.num_rows, by_feature),
                "absorption": {name: int(count.sum()) for name, count in pairs.items()},
                "atoms_of_a_recovered_feature": _atoms_each(cosines, self.threshold),
                "mean_active": float(counted.sum()) / rows.num_rows,
            },
        )

    def _means(
        self, values: Mapping[str, Tensor]
    ) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
        """Means with their intervals over the entries."""
        found: dict[str, float | None] = {name: _mean(value) for name, value in values.items()}
        sums = {name: value.double() for name, value in values.items()}
        count = len(next(iter(sums.values())))
        if not count:
            return found, dict.fromkeys(found)
        sums["count"] = torch.ones(count, dtype=torch.float64)

        def means(drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: drawn[name] / drawn["count"] for name in values}

        return found, bootstrap_intervals(means, sums, **self.bootstrap.model_dump())

    def _ratio(
        self, name: str, part: Tensor, whole: Tensor
    ) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
        """A share of pooled events, with its interval over those that have any."""
        some = whole > 0
        if not some.any():
            return {name: None}, {name: None}
        sums = {"part": part[some].double(), "whole": whole[some].double()}
        share = float(sums["part"].sum() / sums["whole"].sum())
        found = bootstrap_intervals(
            lambda drawn: {name: drawn["part"] / drawn["whole"]},
            sums,
            **self.bootstrap.model_dump(),
        )
        return {name: share}, found


def truth_of(one: PlacedSAE, on: Split) -> tuple[World, SuperpositionRows]:
    """The world behind the activations of an SAE, and all rows of the split.

    Raises:
        ConfigError: If the true features of these activations are not known.
    """
    rows = all_rows(one.rows(on))
    if one.world is None or not isinstance(rows, SuperpositionRows):
        raise ConfigError(
            "This evaluation needs the true features, which only activations=superposition knows."
        )
    return one.world, rows


def cosines_of(world: World, sae: SAE) -> Float[Tensor, "num_features d_sae"]:
    """Cosine of every true feature with every atom; its size where codes have both signs."""
    cosines = world.features.double() @ sae.W_dec.detach().cpu().double().T
    return cosines.abs() if sae.config.activation in SIGNED else cosines


def partners(world: World, sae: SAE) -> Int[Tensor, " num_features"]:
    """The atom of each feature in the one-to-one matching with the largest sum, or -1."""
    pairs = match(world.features, sae.W_dec, absolute=sae.config.activation in SIGNED)
    atom = torch.full((world.num_features,), -1)
    atom[pairs.first] = pairs.second
    return atom


@torch.no_grad()
def count_truth(
    sae: SAE, rows: SuperpositionRows, atom: Int[Tensor, " num_features"], batch_rows: int
) -> tuple[Int[Tensor, " num_features"], dict[str, Int[Tensor, " children"]]]:
    """Counts of each feature, and of parents whose children take over.

    Args:
        sae: Encodes the vectors.
        rows: Vectors with their truth.
        atom: The atom that stands for each feature: the one of largest cosine.
        batch_rows: Vectors encoded at once.

    Returns:
        Vectors on which each feature holds; and counts for each child, over the vectors on which it
        holds and its atom fires: `events`, `failed` (the parent's atom is silent) and `planted`
        (the parent's direction is not in x). Where one atom stands for both there are no events.
    """
    world = rows.world
    children = torch.arange(world.num_roots, world.num_features)
    parents = world.parents[children]
    apart = atom[children] != atom[parents]
    held = torch.zeros(world.num_features, dtype=torch.long)
    pairs = {
        name: torch.zeros(len(children), dtype=torch.long)
        for name in ("events", "failed", "planted")
    }
    for chunk in range(rows.num_chunks):
        codes, expressed, x = rows.sample(chunk)
        held += (codes != 0).sum(0)
        if not len(children):
            continue
        for start in range(0, len(x), batch_rows):
            part = slice(start, start + batch_rows)
            fires = (sae.encode(x[part].to(sae.device)) != 0).cpu()
            event = (codes[part][:, children] != 0) & fires[:, atom[children]] & apart
            pairs["events"] += event.sum(0)
            pairs["failed"] += (event & ~fires[:, atom[parents]]).sum(0)
            pairs["planted"] += (event & (expressed[part][:, parents] == 0)).sum(0)
    return held, pairs


def by_frequency(
    frequencies: Float[Tensor, " num_features"], values: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Means over the features of half a decade of frequency each; never seen ones come first.

    Example:
        >>> values = {"a": torch.tensor([0.0, 1.0, 0.0])}
        >>> means = by_frequency(torch.tensor([0.0, 0.02, 0.02]), values)
        >>> [(entry["features"], entry["a"]) for entry in means], means[1]["from"]
        ([(1, 0.0), (2, 0.5)], 0.01)
    """
    bucket = torch.floor(2 * frequencies.double().log10())  # -inf: never seen
    found = []
    for value in bucket.unique().tolist():
        inside = bucket == value
        found.append(
            {"from": 10 ** (value / 2), "below": 10 ** ((value + 1) / 2) if value > -1e9 else 0.0,
             "features": int(inside.sum())}
            | {name: _mean(entries[inside]) for name, entries in values.items()}
        )  # fmt: skip
    return found


def _atoms_each(cosines: Float[Tensor, "num_features d_sae"], threshold: float) -> float | None:
    """Mean number of atoms that recover a feature, over those that are recovered at all."""
    each = (cosines > threshold).sum(1)
    return _mean(each[each > 0]) if bool((each > 0).any()) else None


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
