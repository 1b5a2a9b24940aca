"""`interpretability`: explanations of dictionaries of many layers, sites, sizes and seeds."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.baselines import BASELINES
from sae.dictionaries.from_config import sparsity_of
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError, SAEError
from sae.evals.base import PLACING, Estimate, Measured, register
from sae.evals.controls import RANDOM_LM, but_seed, kind_of, made_of
from sae.evals.explaining import ExplainingEval, Wanted
from sae.provenance import content_key, provenance
from sae.tables import Table
from sae.types import Split

log = logging.getLogger(__name__)
JOINED = ("subjects", "deciles", "densities", "qualification", "correlations", "latents")
"""Tables of `autointerp` that are joined, with columns for the place and the dictionary."""


class Group(NamedTuple):
    """SAEs at one point that differ by their seed alone, and controls there.

    Args:
        place: Columns `point`, `layer`, `site`, `dictionary`, `dict_ratio`.
        seeds: The SAEs.
        controls: Trained controls.
    """

    place: Mapping[str, Any]
    seeds: Sequence[PlacedSAE]
    controls: Sequence[PlacedSAE]


@register
class InterpretabilityEval(ExplainingEval):
    """`autointerp` of many runs at once: by layer and site, by size, with seeds pooled.

    Runs at one point that differ by their seed alone are one dictionary; runs with a frozen decoder
    and of a random LM are controls of all dictionaries at their point. Baselines among the runs are
    left out: those of `autointerp` are made for each dictionary (docs/guides/explanations.md).
    """

    name: ClassVar[str] = "interpretability"
    takes: ClassVar[Literal["one", "several", "both"]] = "several"
    unused: ClassVar[tuple[str, ...]] = PLACING

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Explain and score each group, and join the tables."""
        if self.chat.saebench:
            raise ConfigError(
                f"{self.where}chat.saebench is for one SAE. Use eval.autointerp.chat.saebench."
            )
        groups = list(grouped(subjects))
        if not groups:
            raise ConfigError(
                "eval=[interpretability] found no SAE among these runs that is neither a baseline "
                f"nor a control: {', '.join(one.name for one in subjects)}. Add its run."
            )
        found, failed = [], {}
        for group in groups:
            name = f"{group.place['point']} {group.place['dictionary']}"
            log.info("%s: %s", name, ", ".join(one.name for one in group.seeds))
            try:
                found.append((group, self._measured(group, on)))
            except SAEError as error:
                told = str(error).replace("eval.autointerp.", self.where)
                if not found and group is groups[-1]:
                    raise type(error)(told) from error
                log.warning("left out: %s: %s", name, told)  # what others gave is not lost
                failed[name] = told
        several = len({group.place["dictionary"] for group in groups}) > 1
        return Measured(
            metrics={
                " ".join([place["point"], *([place["dictionary"]] if several else []), name]): one
                for place, name, one in _metrics(found)
            },
            tokens={
                "dictionaries": len(found), "SAEs": sum(len(group.seeds) for group, _ in found),
                "latents": sum(measured.tokens["latents"] for _, measured in found),
            },
            details={
                "groups": [_facts(group, measured) for group, measured in found],
                "failed": failed,
            },
            tables={name: _joined(name, found) for name in JOINED},
        )  # fmt: skip

    def describe(self, subjects: Sequence[PlacedSAE], on: Split) -> dict[str, Any]:
        """Versions and machine; the groups are in the details."""
        return provenance()

    def _measured(self, group: Group, on: Split) -> Measured:
        one, *others = group.seeds
        one.prepare(on)
        seeds, controls = (
            tuple(str(of.folder) for of in runs) for runs in (others, group.controls)
        )
        return self.explain(one, on, Wanted(controls=controls, seeds=seeds))


def grouped(subjects: Sequence[PlacedSAE]) -> Iterator[Group]:
    """The dictionaries among SAEs, in order of layer, each with its seeds and its controls.

    A control belongs to the dictionaries of its point that have its size, its sparsity and its
    text, and but for the random LM its LM. Equal names of different dictionaries are numbered.

    Args:
        subjects: Runs of any points.
    """
    seeds: dict[str, list[PlacedSAE]] = {}
    controls: list[PlacedSAE] = []
    for one in subjects:
        if one.folder is None or one.point is None:
            log.warning("left out: %s, which is no run folder of an SAE at one point", one.name)
        elif kind_of(one.sae):
            controls.append(one)
        elif one.sae.config.architecture not in BASELINES:
            known = but_seed(one.sae)
            made = repr(known) if known else str(one.folder.resolve())
            key = content_key({"point": str(one.point), "made": made})
            seeds.setdefault(key, []).append(one)
    groups = [(_place(group[0]), group) for group in seeds.values()]
    groups.sort(
        key=lambda part: [part[0][n] for n in ("site", "layer", "dict_ratio", "dictionary")]
    )
    seen: Counter[tuple[str, str]] = Counter()
    for place, group in groups:
        label = place["point"], place["dictionary"]
        seen[label] += 1
        if seen[label] > 1:
            place["dictionary"] += f" #{seen[label]}"
        yield Group(place, group, [one for one in controls if _belongs(one, group[0])])


def _belongs(control: PlacedSAE, one: PlacedSAE) -> bool:
    theirs, ours = made_of(control.sae), made_of(one.sae)
    if kind_of(control.sae) == RANDOM_LM:
        for made in (theirs, ours):
            for name in ("lm", "identities", "dtype"):
                made.pop(name, None)
    alike = [
        (sae.d_sae, sparsity_of(_settings(sae))) for sae in (control.sae, one.sae)
    ]  # fmt: skip
    return theirs == ours and alike[0] == alike[1]


def _settings(sae: SAE) -> dict[str, Any]:
    """Settings of the dictionary."""
    made_by: Any = sae.metadata.get("settings") or {}
    return made_by.get("sae") or {}


def _place(one: PlacedSAE) -> dict[str, Any]:
    point, config = one.point, one.sae.config
    assert point is not None
    words = [config.architecture, *sparsity_of(_settings(one.sae)), f"d_sae={one.sae.d_sae}"]
    return {
        "point": str(point), "layer": point.layer, "site": point.site,
        "dictionary": " ".join(words), "dict_ratio": one.sae.d_sae / one.sae.d_in,
    }  # fmt: skip


def _metrics(
    found: Sequence[tuple[Group, Measured]],
) -> Iterator[tuple[Mapping[str, Any], str, Estimate]]:
    for group, measured in found:
        for name, estimate in measured.metrics.items():
            yield group.place, name, estimate


def _facts(group: Group, measured: Measured) -> dict[str, Any]:
    kept = ("qualified", "missing", "states", "duplicates", "labels", "seconds", "narrow", "chat")
    return {
        **group.place, "runs": [one.name for one in group.seeds],
        "controls": [one.name for one in group.controls], "tokens": measured.tokens,
        **{name: measured.details[name] for name in kept if name in measured.details},
    }  # fmt: skip


def _joined(name: str, found: Sequence[tuple[Group, Measured]]) -> Table:
    """One table of all groups, with the columns of their places before the others."""
    kinds: dict[str, Any] = {
        "point": "string", "layer": "int64", "site": "string", "dictionary": "string",
        "dict_ratio": "float64",
    }  # fmt: skip
    schema = {key: (kind, "") for key, kind in kinds.items()}
    rows: list[dict[str, Any]] = []
    for group, measured in found:
        table = measured.tables[name]
        schema |= {key: (column.type, column.unit) for key, column in table.columns.items()}
        rows += [{**group.place, **row} for row in table.rows()]
    return Table.of(schema, rows)
