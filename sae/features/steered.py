"""A study of steering: all arms at the same KLs, on prompts that choose and that report."""

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
from sae.probing.judge import Judge
from sae.types import Split

FEATURE, DIFF_MEAN, NOISE = "feature", "DiffMean", "noise"
UNSTEERED, PROMPT = "unsteered", "prompt"
OF_FEATURE = (FEATURE, "wrong sign", "random direction", "random feature")
UNPUSHED = (PROMPT, UNSTEERED)
"""Arms without a push: their draws differ in their random numbers alone."""
OF_SHARED = (NOISE, DIFF_MEAN, *UNPUSHED)
ARMS = (*OF_FEATURE, *OF_SHARED)
"""Arms in the order of tables: those of a feature, then those that all features share."""


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
        targets: KLs in nats, one for each draw.
        start: A size that searches start from.
    """

    def __init__(self, pen: Pen, judge: Judge, targets: Sequence[float], start: float) -> None:
        self.pen, self.judge, self.targets, self.start = pen, judge, tuple(targets), start
        self.clean: Written = pen.write(None, [0.0] * len(self.targets))
        self._gauge = Gauge(pen.one, self.clean.tokens[0])

    def steered(self, arm: Arm) -> dict[str, Any]:
        """An arm at every target, as plain JSON values."""
        sizes = sizes_at(self._gauge, arm, self.targets, self.start)
        written = self.pen.write(arm, [one.size for one in sizes])
        return self._plain(written) | {
            "sizes": [one.size for one in sizes], "kl": [one.kl for one in sizes],
            "reached": [one.reached for one in sizes],
        }  # fmt: skip

    def unsteered(self, before: str = "") -> dict[str, Any]:
        """The LM by itself, behind another text if one is given, as plain JSON values."""
        written = self.pen.write(None, [0.0] * len(self.targets), before) if before else self.clean
        return self._plain(written)

    def _plain(self, written: Written) -> dict[str, Any]:
        found = scored(written, self.clean, self.judge)
        return {
            "texts": written.texts, "ce": written.ce.tolist(),
            "distinct": written.distinct.tolist(),
            **{name: values.tolist() for name, values in found._asdict().items()},
        }  # fmt: skip


def arms_of(one: PlacedSAE, latent: int, found: Contrast, seed: int) -> list[Arm]:
    """The arms of a feature; a random direction and a random live latent are drawn for each.

    Args:
        one: The SAE.
        latent: The feature.
        found: Says which latents are live.
        seed: Seed of the draws.

    Raises:
        ConfigError: If no other latent is live.
    """
    generator = np.random.default_rng((seed, latent))
    row = one.sae.W_dec[latent]
    others = found.live[found.live != latent].tolist()
    if not others:
        raise ConfigError(
            f"Latent {latent} is the only one that fires on the texts, so there is no other that "
            "eval=steer could hold against it. Give other texts or another SAE."
        )
    other = int(generator.choice(others))
    random = torch.from_numpy(generator.normal(size=len(row))).float()
    directions = (row, -row, random, one.sae.W_dec[other])
    return [Arm(name, v) for name, v in zip(OF_FEATURE, directions, strict=True)]


def best(of_arm: Mapping[str, Any]) -> int:
    """Number of the target with the highest mean score."""
    return int(np.asarray(of_arm["score"]).mean(1).argmax())


def study_feature(
    one: PlacedSAE, halves: tuple[Half, Half], arms: Sequence[Arm], neutral: Neutral,
    advance: Callable[[int], object],
) -> dict[str, Any]:  # fmt: skip
    """Steer by a feature and its controls.

    Args:
        one: The SAE.
        halves: Prompts that choose the target, and prompts that report.
        arms: The feature's, itself first.
        neutral: Neutral text.
        advance: Gets 1 after each arm.

    Returns:
        Plain JSON values: `choose` of the feature, `report` of all arms by name, `at` the chosen
        target's number, `neutral` as `costs` gives it.
    """
    choosing, reporting = halves
    choose = choosing.steered(arms[0])
    advance(1)
    report = {}
    for arm in arms:
        report[arm.name] = reporting.steered(arm)
        advance(1)
    at = best(choose)
    edits = [(arm, report[arm.name]["sizes"][at]) for arm in arms]
    found = costs(one, edits, neutral)
    return {
        "choose": choose, "report": report, "at": at,
        "neutral": dict(zip(report, found, strict=True)),
    }  # fmt: skip


def study_shared(
    one: PlacedSAE, halves: tuple[Half, Half], direction: torch.Tensor, words: str, seed: int,
    neutral: Neutral, advance: Callable[[int], object],
) -> dict[str, Any]:  # fmt: skip
    """Steer by the arms that need no feature.

    Args:
        one: The SAE.
        halves: See `study_feature`.
        direction: DiffMean.
        words: The concept, as it stands in the prompt.
        seed: Seed of the noise.
        neutral: Neutral text.
        advance: Gets 1 after each arm.

    Returns:
        As `study_feature`; `at` is the target of DiffMean, `neutral` has a cost for every target.
    """
    choosing, reporting = halves
    arms = [Arm(NOISE, seed=seed), Arm(DIFF_MEAN, direction)]
    choose = choosing.steered(arms[1])
    advance(1)
    report, neutral_costs = {}, {}
    for arm in arms:
        found = report[arm.name] = reporting.steered(arm)
        neutral_costs[arm.name] = costs(one, [(arm, size) for size in found["sizes"]], neutral)
        advance(1)
    for name, text in ((UNSTEERED, ""), (PROMPT, before(words))):
        report[name] = reporting.unsteered(text)
        advance(1)
    return {"choose": choose, "report": report, "at": best(choose), "neutral": neutral_costs}


def before(words: str) -> str:
    """The text that names a concept to the LM."""
    return f"The following is a text about {words}.\n\n"


def costs(
    one: PlacedSAE, edits: Sequence[tuple[Arm, float]], neutral: Neutral
) -> list[dict[str, list[float]]]:
    """KL and rise of the cross entropy of neutral text under each edit.

    Returns:
        For each edit, `predictions` and the sums of `kl` and `ce` in nats, by document.
    """
    sums = on_text(
        one, neutral.on, [arm.pushed(size) for arm, size in edits],
        num_tokens=neutral.num_tokens, batch_contexts=neutral.batch_contexts,
    )  # fmt: skip
    sums = sums[sums[:, 0, 0] > 0]  # a document's last token alone makes no prediction
    count, ce, kl = sums[..., 0], sums[..., 1], sums[..., 2]
    return [
        {"predictions": count[:, i].tolist(), "kl": kl[:, i].tolist(),
         "ce": (ce[:, i] - ce[:, 0]).tolist()}
        for i in range(1, len(edits) + 1)
    ]  # fmt: skip
