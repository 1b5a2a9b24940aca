"""A study of steering: all arms at the same KLs, on prompts that choose and that report."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.features.output_effects import Contrast
from sae.features.prompted import on_text
from sae.features.steering import Arm, Gauge, sizes_at
from sae.features.written import Pen, Written, scored
from sae.interventions import Replacement
from sae.probing.judge import Judge
from sae.types import Split

FEATURE, DIFF_MEAN, NOISE = "feature", "DiffMean", "noise"
UNSTEERED, PROMPT = "unsteered", "prompt"
OF_FEATURE = (FEATURE, "wrong sign", "random direction", "random feature")
UNPUSHED = (PROMPT, UNSTEERED)
"""Arms without a push, which have no KL."""
OF_SHARED = (NOISE, DIFF_MEAN, *UNPUSHED)
ARMS = (*OF_FEATURE, *OF_SHARED)
"""Arms in the order of tables: those of a feature, then those that all features share."""

Record = dict[str, Any]
"""Texts and scores of an arm at one KL by draw and prompt, and the KL and size of a push."""
Key = tuple[int | None, str, int]
"""A push: its feature (None: all share it), its arm, and the number of its target."""
Cost = Mapping[str, Sequence[float]]
"""Sums over each neutral document, as `costs` gives them."""


class Neutral(NamedTuple):
    """Neutral text that the cost of arms is measured on.

    Args:
        on: The split.
        num_tokens: Upper limit to the tokens.
        batch_contexts: Contexts in a pass.
    """

    on: Split
    num_tokens: int
    batch_contexts: int


class Half:
    """Prompts of one half, and what the LM writes after them by itself.

    Args:
        pen: Writes after the prompts.
        judge: Reads what was written.
    """

    def __init__(self, pen: Pen, judge: Judge) -> None:
        self.pen, self.judge = pen, judge
        self.clean: Written = pen.write(None, [0.0])
        self._gauge = Gauge(pen.one, self.clean.tokens[0][0])

    def steered(self, arm: Arm, targets: Sequence[float], start: float) -> list[Record]:
        """An arm at each of some targets.

        Args:
            arm: The arm.
            targets: KLs in nats.
            start: A size that the search starts from.
        """
        sizes = sizes_at(self._gauge, arm, targets, start)
        records = self._records(self.pen.write(arm, [one.size for one in sizes]))
        return [
            record | {"size": one.size, "kl": one.kl, "reached": one.reached}
            for record, one in zip(records, sizes, strict=True)
        ]

    def unsteered(self, before: str = "") -> Record:
        """The LM by itself, behind another text if one is given."""
        (record,) = self._records(self.pen.write(None, [0.0], before) if before else self.clean)
        return record

    def _records(self, written: Written) -> list[Record]:
        """Texts and scores under each size, as plain JSON values by draw and prompt."""
        found = scored(written, self.clean, self.judge)
        return [
            {"texts": texts, "ce": written.ce[i].tolist(),
             "distinct": written.distinct[i].tolist(),
             **{name: values[i].tolist() for name, values in found._asdict().items()}}
            for i, texts in enumerate(written.texts)
        ]  # fmt: skip


def arms_of(
    one: PlacedSAE, latent: int, found: Contrast, prompts: int, seed: int
) -> list[Arm]:  # fmt: skip
    """The arms of a feature.

    Random directions and random live latents are drawn for each prompt, so intervals over prompts
    hold the luck of this draw.

    Args:
        one: The SAE.
        latent: The feature.
        found: Says which latents are live.
        prompts: Number of prompts that report.
        seed: Seed of the random directions and latents.

    Raises:
        ConfigError: If its decoder row is zero, or no other latent is live.
    """
    generator = np.random.default_rng((seed, latent))
    row = one.sae.W_dec[latent]
    if not row.any():
        raise ConfigError(
            f"The decoder row of latent {latent} is zero: there is nothing to push along. Name "
            "other latents (eval.steer.features)."
        )
    others = found.live[found.live != latent].tolist()
    if not others:
        raise ConfigError(
            f"No other latent than {latent} fires on the texts, so there is none that eval=steer "
            "could hold against it. Give other texts or another SAE."
        )
    random = torch.from_numpy(generator.normal(size=(prompts, len(row)))).float()
    other = one.sae.W_dec[torch.from_numpy(generator.choice(others, prompts))]
    directions = (row, -row, random, other)
    return [Arm(name, v) for name, v in zip(OF_FEATURE, directions, strict=True)]


def best(records: Sequence[Record]) -> int:
    """Number of the target with the highest mean score, among those that were reached if any was.

    A push that misses a target has another KL than the arms that it would be held against.
    """
    reached = [i for i, record in enumerate(records) if record["reached"]]
    return max(reached or range(len(records)), key=lambda i: np.mean(records[i]["score"]))


def study_feature(
    halves: tuple[Half, Half], arms: Sequence[Arm], targets: Sequence[float], start: float,
    advance: Callable[[int], object],
) -> dict[str, Any]:  # fmt: skip
    """Steer by a feature at every target, and by all of its arms at the best one.

    Args:
        halves: Prompts that choose the target, and prompts that report.
        arms: The feature's, itself first.
        targets: KLs in nats.
        start: A size that searches start from.
        advance: Gets 1 after each arm.

    Returns:
        Plain JSON values: `choose` a record for each target, `at` the chosen target's number,
        `report` a record for each arm by name.
    """
    choosing, reporting = halves
    choose = choosing.steered(arms[0], targets, start)
    advance(1)
    at, report = best(choose), {}
    for arm in arms:
        (report[arm.name],) = reporting.steered(arm, [targets[at]], choose[at]["size"])
        advance(1)
    return {"choose": choose, "at": at, "report": report}


def study_shared(
    halves: tuple[Half, Half], direction: Arm, words: str, targets: Sequence[float], start: float,
    advance: Callable[[int], object],
) -> dict[str, Any]:  # fmt: skip
    """Steer by DiffMean at every target, and by the arms that push nothing.

    Args:
        halves: See `study_feature`.
        direction: DiffMean.
        words: The concept, as it stands in the prompt.
        targets: KLs in nats.
        start: Size that searches start from.
        advance: Gets 1 after each arm.

    Returns:
        As `study_feature`, and the `unsteered` record of the choosing prompts.
    """
    choosing, reporting = halves
    choose = choosing.steered(direction, targets, start)
    advance(1)
    report = {}
    for name, text in ((UNSTEERED, ""), (PROMPT, before(words))):
        report[name] = reporting.unsteered(text)
        advance(1)
    return {
        "choose": choose, "at": best(choose), "report": report, "unsteered": choosing.unsteered()
    }  # fmt: skip


def before(words: str) -> str:
    """The text that names a concept to the LM."""
    return f"The following is a text about {words}.\n\n"


def costs(
    one: PlacedSAE, pushes: Sequence[tuple[Arm, float]], neutral: Neutral,
    advance: Callable[[int], object],
) -> list[dict[str, list[float]]]:  # fmt: skip
    """KL and rise of the cross entropy of neutral text under each push, beside one clean pass.

    Args:
        one: The SAE.
        pushes: Arms and their sizes.
        neutral: Neutral text.
        advance: Gets the number of contexts times pushes done.

    Returns:
        For each push, `predictions` and the sums of `kl` and `ce` in nats, by document.
    """
    sums = on_text(
        one, neutral.on, [_in_turn(arm, size) for arm, size in pushes],
        num_tokens=neutral.num_tokens, batch_contexts=neutral.batch_contexts, advance=advance,
    )  # fmt: skip
    sums = sums[sums[:, 0, 0] > 0]  # a document's last token alone makes no prediction
    count, ce, kl = sums[..., 0], sums[..., 1], sums[..., 2]
    return [
        {"predictions": count[:, i].tolist(), "kl": kl[:, i].tolist(),
         "ce": (ce[:, i] - ce[:, 0]).tolist()}
        for i in range(1, len(pushes) + 1)
    ]  # fmt: skip


def _in_turn(arm: Arm, size: float) -> Replacement:
    """A push of texts that come batch by batch: each is the first draw of the next prompt."""
    numbers = itertools.count()

    def replace(x: torch.Tensor) -> torch.Tensor:
        return arm.pushed(size, [(0, next(numbers)) for _ in x])(x)

    return replace
