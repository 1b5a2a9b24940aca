"""Dictionaries whose purity was measured, and rows of tables that hold an SAE against controls."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sae.features.firings import Firings
from sae.features.labelled_text import LabelledText
from sae.features.purity import Purities
from sae.metrics.bootstrap import Bootstrap
from sae.metrics.matched import (
    Matched,
    Mean,
    Sample,
    matched_means,
    mean_of,
    plain_mean,
    seed_interval,
)
from sae.tables import Type

COMPARED: Mapping[str, tuple[Type, str]] = {
    "control": ("string", ""), "number": ("string", ""), "latents": ("int64", ""),
    "coverage": ("float64", "share"),
    **{f"{who}{end}": ("float64", "")
       for who in ("sae", "of_control", "difference") for end in ("", "_low", "_high")},
    "seeds": ("int64", ""), "seed_low": ("float64", ""), "seed_high": ("float64", ""),
}  # fmt: skip
"""Columns of the rows of `compared`."""


class Dictionary(NamedTuple):
    """A dictionary that was measured.

    Args:
        name: Name in tables; seeds of one kind have the same.
        found: Numbers of its latents.
        num_rows: Rows that count.
        facts: Facts about its fit, plain JSON values.
    """

    name: str
    found: Purities
    num_rows: int
    facts: Mapping[str, Any]

    def sample(self, name: str) -> Sample:
        """A number of its latents, with their densities."""
        found = self.found
        return Sample(found.firings / self.num_rows, found.values[name], found.influence[name])


def named(
    latents: Iterable[tuple[int, Firings]], d_sae: int, text: LabelledText
) -> Iterator[tuple[str, Firings]]:
    """Latents by their names, on the rows that count for the SAE and in a text.

    Args:
        latents: Indices and firings; d_sae + j is the negative side of latent j.
        d_sae: Latents of the SAE.
        text: The text.
    """
    for index, fired in latents:
        negative, latent = divmod(index, d_sae)
        there = text.counted[fired.row]
        yield f"{'-' if negative else ''}{latent}", Firings(*(part[there] for part in fired))


def mean_over_latents(dictionaries: Sequence[Dictionary], number: str) -> Mean | None:
    """Mean over the latents of each dictionary, then over dictionaries; None where undefined."""
    samples = [one.sample(number) for one in dictionaries if one.found.latent]
    means = [mean for sample in samples if (mean := plain_mean(sample))]
    return mean_of(means) if means else None


def compared(
    saes: Sequence[Dictionary], others: Sequence[Dictionary], numbers: Sequence[str],
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each control and number, at equal firing counts.

    Args:
        saes: Seeds of the SAE; those without a latent that was measured are left out.
        others: Controls.
        numbers: Names of numbers.
        bootstrap: Settings of the intervals over documents.
    """
    saes, rows = [one for one in saes if one.found.latent], []
    for name in dict.fromkeys(one.name for one in others):
        group = [one for one in others if one.name == name and one.found.latent]
        for number in numbers if group else ():
            row = {"control": name, "number": number,
                   "latents": sum(len(one.found.latent) for one in group)}  # fmt: skip
            found = matched_means(
                [one.sample(number) for one in saes], [one.sample(number) for one in group]
            )
            rows.append(row | (_row(found, bootstrap) if found else {}))
    return rows


def _row(found: Matched, bootstrap: Bootstrap) -> dict[str, Any]:
    first, second = mean_of(found.first), mean_of(found.second)
    row: dict[str, Any] = {"coverage": found.coverage, "seeds": len(found.first)}
    for name, mean in (("sae", first), ("of_control", second), ("difference", first - second)):
        low, high = mean.interval(bootstrap) or (None, None)
        row |= {name: mean.value, f"{name}_low": low, f"{name}_high": high}
    between = seed_interval(
        [mean.value for mean in found.first], [mean.value for mean in found.second], bootstrap.level
    )
    row["seed_low"], row["seed_high"] = between or (None, None)
    return row
