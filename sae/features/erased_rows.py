"""Rows of tables about concept erasure: each edit's scores and costs, and areas under curves."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.features.erased import Scores
from sae.features.erasing import Erasure
from sae.metrics.bootstrap import Bootstrap, bootstrap_intervals
from sae.metrics.classification import interval
from sae.metrics.two_way import area

ENDS = ("", "_low", "_high")
AXES = ("kl", "relative_size")
"""Costs that areas are taken over."""
LESS = "latents less LEACE"
"""Name of the difference of the areas of latents, by the headline's edit, and of LEACE."""
RIVALS = ("LEACE", "mean difference")
"""Areas go up to the cost of the cheaper of these two."""
OUTCOMES = ("probability", "calibrated_accuracy", "linear_probe")
"""Numbers whose way to chance, .5, is a drop. An edit that only pushes all answers to one side
brings the mean two-way probability to .5 as well; the calibrated accuracy tells. Where the LM
answers, the probe is left out, which LEACE takes to chance by design."""
Row = dict[str, Any]


class Edited(NamedTuple):
    """An edit as a row of a table.

    Args:
        row: Values by column.
        drops: Distance by which each outcome came nearer to chance, for each draw.
    """

    row: Row
    drops: Mapping[str, Float[np.ndarray, " draws"]]


def costs(sums: Float[Tensor, "documents conditions sums"], bootstrap: Bootstrap) -> list[Row]:
    """Means over neutral text under each edit, with intervals over its documents.

    Args:
        sums: As `sae.features.prompted.on_text` gives them.
        bootstrap: Settings of the draws of documents.
    """

    def means(of: Mapping[str, Tensor]) -> dict[str, Tensor]:
        predictions, ce, kl, rows, size, share = of["sums"].unbind(-1)
        rows = rows.clamp_min(1)
        return {"ce": ce / predictions, "kl": kl / predictions, "neutral_size": size / rows,
                "neutral_relative_size": share / rows}  # fmt: skip

    found = []
    for of_edit in sums.unbind(1):
        values = means({"sums": of_edit.sum(0)})
        ends = bootstrap_intervals(means, {"sums": of_edit}, **bootstrap.model_dump())
        row: Row = {}
        for name, value in values.items():
            numbers = (float(value), *(ends[name] or (None, None)))
            row |= {f"{name}{end}": one for end, one in zip(ENDS, numbers, strict=True)}
        found.append(row)
    return found


def rows(
    task: str, fitted_on: str, edits: Sequence[Erasure], scores: Sequence[Scores],
    neutral: Sequence[Row], level: float,
) -> Iterator[Edited]:  # fmt: skip
    """A row for the LM as it is, and one for each edit.

    Args:
        task: Name of the task that is measured.
        fitted_on: Name of the task that the edits are fitted on.
        edits: The edits.
        scores: Scores without an edit, and under each edit.
        neutral: `costs`, in the same order.
        level: Confidence level of the intervals.
    """
    outcomes = [name for name in OUTCOMES if name in scores[0]]
    if "probability" in outcomes:
        outcomes.remove("linear_probe")
    every = [Erasure("none", 0, torch.clone), *edits]
    for edit, of_edit, cost in zip(every, scores, neutral, strict=True):
        # an edit that turns the answers round has taken out as little as one that leaves them
        drops = {name: np.abs(scores[0][name] - 0.5) - np.abs(of_edit[name] - 0.5)
                 for name in outcomes}  # fmt: skip
        row: Row = {"task": task, "fitted_on": fitted_on, "method": edit.method,
                    "latents": edit.latents} | cost  # fmt: skip
        named = {f"drop_{name}": drop for name, drop in drops.items()}
        for name, draws in {**of_edit, **named}.items():
            row |= _with_ends(name, draws, level)
        yield Edited(row, drops)


def areas(task: str, measured: Sequence[Edited], headline: str, level: float) -> Iterator[Row]:
    """Mean drop of each outcome up to a budget, for each method and axis.

    Of the headline there is one more: its area less that of LEACE.
    """
    methods = dict.fromkeys(one.row["method"] for one in measured[1:])
    for outcome, axis in product(measured[0].drops, AXES):
        budget = min(one.row[axis] for one in measured if one.row["method"] in RIVALS)
        found = {}
        for method in methods:
            own = [one for one in measured if one.row["method"] == method]
            found[method] = area(
                [one.row[axis] for one in own], [one.drops[outcome] for one in own],
                max(budget, 1e-12),
            )  # fmt: skip
        found[LESS] = found[headline] - found["LEACE"]
        for method, draws in found.items():
            row: Row = {"task": task, "method": method, "outcome": outcome, "axis": axis,
                        "budget": budget}  # fmt: skip
            yield row | _with_ends("area", draws, level)


def _with_ends(name: str, draws: Float[np.ndarray, " draws"], level: float) -> Row:
    ends = interval(draws, level) or (None, None)
    value = float(draws[0])
    return {name: value if np.isfinite(value) else None, f"{name}_low": ends[0],
            f"{name}_high": ends[1]}  # fmt: skip
