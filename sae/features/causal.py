"""A study of one decomposition: latents chosen on some prompts, patched on others."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sae.artifacts.placed import PlacedSAE
from sae.features.expansion import rank_correlation
from sae.interventions.attribution import patched_alone
from sae.interventions.causal_sets import (
    Prompts,
    Ranked,
    measured,
    orders,
    ranked,
    sizes,
    smallest,
)
from sae.interventions.masks import learn_mask, search_greedily
from sae.interventions.patching import Outcome, Patching
from sae.metrics.bootstrap import Bootstrap, bootstrap_intervals
from sae.progress import progress
from sae.settings import Settings, setting
from sae.tasks.task import Task

FAITHFUL = 0.95
STRONGEST = 20
"""Latents that are called chosen where no set halves the KL."""
MASK, GREEDY = SEARCHES = ("learned mask", "greedy")
"""Methods that find sets rather than orders."""
HALVING = {
    "attribution": "attribution", "gradients": "integrated gradients", "active": "most active",
    "random": "random",
}  # fmt: skip
"""Methods, by the names of the numbers about half of the KL."""
LISTED = 100
"""Smallest number of latents in the table, which also has those chosen and patched alone."""


Penalty = Annotated[float, Field(ge=0)]


class StudySettings(Settings):
    """Settings of a study, a base of evaluations that make some."""

    batch_prompts: int = setting(32, ge=1, help="prompts in a pass; decides memory")
    steps: int = setting(10, ge=1, help="steps of integrated gradients")
    exact: int = setting(100, ge=0, help="latents of largest attribution that are patched alone")
    points: int = setting(12, ge=2, help="sizes of sets, from 1 to all latents")
    random_sets: int = setting(5, ge=1, help="random sets of each size")
    penalties: tuple[Penalty, ...] = setting(
        (0.03, 0.01), min_length=1,
        help="of the learned masks: the share of the KL that a latent must lower",
    )  # fmt: skip
    mask_steps: int = setting(60, ge=1, help="steps of a mask")
    mask_prompts: int = setting(16, ge=1, help="prompts that masks are learned on")
    search: Literal["none", "greedy"] = setting(
        "none", help="greedy: also the paper's search, which takes long"
    )
    candidates: int = setting(200, ge=1, help="latents that the greedy search starts with")
    orders: int = setting(3, ge=1, help="random orders of the greedy search")
    thresholds: int = setting(12, ge=1, help="thresholds of it, 1e-5 to 1 nats")


class Decomposition(NamedTuple):
    """A dictionary whose latents are patched.

    Args:
        name: Name in tables.
        placed: The dictionary, at the place of the SAE that it stands beside.
        split: True if the two signs of a code are two latents.
        whole: True if it is studied in full. Else sets are by attribution or drawn at random, once,
            and masks, completeness and latents patched alone are left out.
    """

    name: str
    placed: PlacedSAE
    split: bool = False
    whole: bool = False


class Study(NamedTuple):
    """Findings about a decomposition; plain JSON values.

    Args:
        numbers: Numbers by their names.
        sets: A row for each set that was patched.
        latents: A row for each of the latents of largest effect.
        found: The latents of the learned masks and of the greedy search, a list for each.
        chosen: The smallest set that halves the KL, else the strongest latents: `latents` and
            `weights`.
        example: A prompt and its counterfactual, token ids.
        prompts: Number of prompts that were measured.
    """

    numbers: dict[str, Any]
    sets: list[dict[str, Any]]
    latents: list[dict[str, Any]]
    found: list[dict[str, Any]]
    chosen: dict[str, list]
    example: dict[str, list[int]]
    prompts: int


def studied(
    of: Decomposition, one: PlacedSAE, halves: tuple[Task, Task], asked: StudySettings,
    bootstrap: Bootstrap,
) -> Study:  # fmt: skip
    """Study a decomposition.

    Args:
        of: The decomposition.
        one: The SAE at whose place, and with whose LM, it is studied.
        halves: Prompts that choose latents, and others.
        asked: Settings.
        bootstrap: Settings of the intervals over prompts.
    """
    chooses, reports = (_prompts(of, one, half, asked.batch_prompts) for half in halves)
    ranks = ranked(chooses, asked.steps if of.whole else 0)
    empty, every, everything = (
        measured(reports, []), measured(reports, None), measured(reports, None, 1.0)
    )  # fmt: skip
    table = _Sets(reports, empty, everything, bootstrap)
    table.add("none", 0, [], empty)
    table.add("all latents", 0, range(reports[0].patching.num_latents), every)
    orders_of = orders(ranks, asked.random_sets if of.whole else 1)
    if not of.whole:
        orders_of = [one for one in orders_of if one[0] in ("attribution", "random")]
    every_size = sizes(len(ranks.order["attribution"]), asked.points)
    with progress(f"patch sets of {of.name}", len(every_size) * len(orders_of), "sets") as advance:
        for size in every_size:
            for method, draw, order in orders_of:
                whole = of.whole and method == "attribution"
                table.add(method, draw, order[:size], complement=whole)
                advance(1)
    if of.whole:
        _masks(table, of, one, halves[0], ranks, asked)
    if asked.search == "greedy":
        _greedy(table, chooses, ranks, asked)
    half = float(empty.kl.mean()) / 2
    halving: dict[str, list[int | None]] = {}
    for method, draw, order in orders_of:
        size = smallest(reports, order, half, table.kls(method, draw))
        halving.setdefault(method, []).append(size)
    exact = _exact(chooses, ranks, asked.exact) if of.whole and asked.exact else {}
    order = ranks.order["attribution"]
    (halves_it,) = halving["attribution"]
    if halves_it not in (None, *table.kls("attribution")):
        table.add("attribution", 0, order[:halves_it], complement=of.whole)
    chosen = order[: halves_it or STRONGEST]
    weights = ranks.effects["attribution"]
    return Study(
        numbers={
            "latents": len(order),
            "kl_empty": float(empty.kl.mean()), "kl_all": float(every.kl.mean()),
            "kl_everything": float(everything.kl.mean()),
            **{
                f"half_{name}": _middle(halving[method])
                for name, method in HALVING.items() if method in halving
            },
            "faithful_95": table.faithful("attribution"),
            "spearman": rank_correlation(
                [float(weights[i]) for i in exact], list(exact.values())
            ),
            **(_sum_of_effects(ranks) if of.whole else {}),
        },
        sets=table.rows, found=table.found, latents=_latents(ranks, exact, chosen, table.found),
        chosen={"latents": chosen, "weights": [float(weights[i]) for i in chosen]},
        example={
            name: list(getattr(halves[1].prompts[0], name)) for name in ("tokens", "patch")
        },
        prompts=len(empty.kl),
    )  # fmt: skip


def _prompts(of: Decomposition, one: PlacedSAE, task: Task, size: int) -> list[Prompts]:
    assert one.point is not None
    found = []
    for batch in task.batches(size):
        patching = Patching(
            one.lm, of.placed.sae, one.point, one.counted, batch.tokens, batch.patch,
            batch.end, split=of.split,
        )  # fmt: skip
        found.append(Prompts(patching, batch.difference))
    return found


class _Sets:
    """The table of sets that were patched on the reporting prompts."""

    def __init__(
        self, reports: Sequence[Prompts], empty: Outcome, everything: Outcome, bootstrap: Bootstrap
    ):
        self.reports, self.empty, self.everything = reports, empty, everything
        self.bootstrap = bootstrap
        self.rows: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def add(
        self, method: str, draw: int, latents: Sequence[int], outcome: Outcome | None = None,
        *, complement: bool = False,
    ) -> None:  # fmt: skip
        """Patch a set, unless its outcome is known, and add its row.

        Args:
            method: Method that chose it.
            draw: Number of the draw.
            latents: The set.
            outcome: Effect of patching it.
            complement: True if all latents but the set are patched as well.
        """
        if method in SEARCHES:
            self.found.append({"method": method, "draw": draw, "latents": list(latents)})
        found = outcome or measured(self.reports, latents)
        sums = {
            "kl": found.kl, "kl_paper": found.kl_paper, "difference": found.difference,
            "empty": self.empty.difference, "everything": self.everything.difference,
            "prompts": torch.ones(len(found.kl)),
        }  # fmt: skip
        if complement:
            sums["rest"] = measured(self.reports, latents, without=True).difference
        point = _numbers({name: value.double().sum() for name, value in sums.items()})
        intervals = bootstrap_intervals(_numbers, sums, **self.bootstrap.model_dump())
        row: dict[str, Any] = {"method": method, "draw": draw, "size": len(latents)}
        for name, value in point.items():
            number = float(value)
            row[name] = number if np.isfinite(number) else None
            row[f"{name}_low"], row[f"{name}_high"] = intervals[name] or (None, None)
        self.rows.append({**row, "edit": float(found.edit.mean())})

    def kls(self, method: str, draw: int = 0) -> dict[int, float]:
        """Mean KL by size of the sets of a method."""
        of = (method, draw)
        return {row["size"]: row["kl"] for row in self.rows if (row["method"], row["draw"]) == of}

    def faithful(self, method: str) -> int | None:
        """The smallest size of a method's sets that are faithful enough."""
        reached = [
            row["size"] for row in self.rows
            if row["method"] == method and (row["faithfulness"] or 0) >= FAITHFUL
        ]  # fmt: skip
        return min(reached, default=None)


def _numbers(sums: dict[str, Tensor] | Any) -> dict[str, Tensor]:
    """Means and shares of sums over prompts.

    Faithfulness: (m(C) - m(none)) / (m(everything) - m(none)) of the mean logit difference m,
    everything being all latents and the error, so that an SAE which misses most has little of it;
    completeness: the same of all latents but C (Marks et al. 2024, arXiv 2403.19647).
    """
    found = {name: sums[name] / sums["prompts"] for name in ("kl", "kl_paper", "difference")}
    scale = sums["everything"] - sums["empty"]
    found["faithfulness"] = (sums["difference"] - sums["empty"]) / scale
    if "rest" in sums:
        found["completeness"] = (sums["rest"] - sums["empty"]) / scale
    return found


def _masks(
    table: _Sets, of: Decomposition, one: PlacedSAE, task: Task, ranks: Ranked, asked: StudySettings
) -> None:
    few = Task(task.name, task.prompts[: asked.mask_prompts])
    patchings = [prompts.patching for prompts in _prompts(of, one, few, asked.batch_prompts)]
    candidates = torch.tensor(ranks.order["most active"], dtype=torch.long)  # none, if all is dead
    for draw, penalty in enumerate(asked.penalties):
        chosen = learn_mask(patchings, candidates, penalty=penalty, steps=asked.mask_steps)
        table.add(MASK, draw, chosen.tolist(), complement=True)


def _greedy(table: _Sets, chooses: Sequence[Prompts], ranks: Ranked, asked: StudySettings) -> None:
    patchings = [prompts.patching for prompts in chooses]
    candidates = ranks.order["attribution"][: asked.candidates]
    for draw in range(asked.orders):
        search_greedily(
            patchings, candidates, np.geomspace(1e-5, 1, asked.thresholds).tolist(), seed=draw,
            found=lambda _, left, draw=draw: table.add(GREEDY, draw, left),
        )  # fmt: skip


def _exact(chooses: Sequence[Prompts], ranks: Ranked, count: int) -> dict[int, float]:
    """Exact effects of the latents of largest attribution, by size."""
    strongest = ranks.effects["attribution"].abs().argsort(descending=True)[:count].tolist()
    prompts = sum(len(one.patching.clean) for one in chooses)
    totals = torch.stack([patched_alone(*one, strongest) for one in chooses]).sum(0) / prompts
    return dict(zip(strongest, totals.tolist(), strict=True))


def _sum_of_effects(ranks: Ranked) -> dict[str, float]:
    """Integrated gradients with the error's share, and the change that they should sum to."""
    total = float(ranks.effects["integrated gradients"].sum()) + ranks.error
    return {
        "sum_of_effects": total, "change_of_difference": ranks.total,
        "effect_of_error": ranks.error,
    }  # fmt: skip


def _middle(sizes: Sequence[int | None]) -> int | None:
    """The median over draws; None where one of them never halves the KL."""
    known = [size for size in sizes if size is not None]
    return round(float(np.median(known))) if len(known) == len(sizes) else None


def _latents(
    ranks: Ranked, exact: dict[int, float], chosen: Sequence[int], found: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    by_size = ranks.effects["attribution"].abs().argsort(descending=True)[:LISTED].tolist()
    masks = Counter(i for one in found if one["method"] == MASK for i in one["latents"])
    names = {"attribution": "attribution", "integrated gradients": "integrated_gradients",
             "most active": "change"}  # fmt: skip
    return [
        {
            "latent": i, "exact": exact.get(i), "masks": masks[i],
            **{
                column: float(ranks.effects[method][i]) for method, column in names.items()
                if method in ranks.effects
            },
        }
        for i in dict.fromkeys([*exact, *by_size, *chosen, *masks])
    ]  # fmt: skip
