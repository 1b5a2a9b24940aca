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
"""Arms without a push, which have no KL."""
OF_SHARED = (NOISE, DIFF_MEAN, *UNPUSHED)
ARMS = (*OF_FEATURE, *OF_SHARED)
"""Arms in the order of tables: those of a feature, then those that all features share."""

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
        targets: KLs in nats.
        start: A size that searches start from.
    """

    def __init__(self, pen: Pen, judge: Judge, targets: Sequence[float], start: float) -> None:
        self.pen, self.judge, self.targets, self.start = pen, judge, tuple(targets), start
        self.clean: Written = pen.write(None, [0.0])
        self._gauge = Gauge(pen.one, self.clean.tokens[0][0])

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
        written = self.pen.write(None, [0.0], before) if before else self.clean
        return self._plain(written)

    def _plain(self, written: Written) -> dict[str, Any]:
        found = scored(written, self.clean, self.judge)
        return {
            "texts": written.texts, "ce": written.ce.tolist(),
            "distinct": written.distinct.tolist(),
            **{name: values.tolist() for name, values in found._asdict().items()},
        }  # fmt: skip


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
        seed: Of the random directions and latents.

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
    random = torch.from_numpy(generator.normal(size=(prompts, len(row)))).float()
    other = one.sae.W_dec[torch.from_numpy(generator.choice(others, prompts))]
    directions = (row, -row, random, other)
    return [Arm(name, v) for name, v in zip(OF_FEATURE, directions, strict=True)]


def shared_arms(direction: torch.Tensor, seed: int) -> list[Arm]:
    """The arms with a push that need no feature.

    Args:
        direction: DiffMean.
        seed: Of the noise.
    """
    return [Arm(NOISE, seed=seed), Arm(DIFF_MEAN, direction)]


def best(of_arm: Mapping[str, Any]) -> int:
    """Number of the target with the highest mean score."""
    return int(np.asarray(of_arm["score"]).mean((1, 2)).argmax())


def study_feature(
    halves: tuple[Half, Half], arms: Sequence[Arm], advance: Callable[[int], object]
) -> dict[str, Any]:
    """Steer by a feature and its controls.

    Args:
        halves: Prompts that choose the target, and prompts that report.
        arms: The feature's, itself first.
        advance: Gets 1 after each arm.

    Returns:
        Plain JSON values: `choose` of the feature, `report` of all arms by name, `at` the chosen
        target's number.
    """
    choosing, reporting = halves
    choose = choosing.steered(arms[0])
    advance(1)
    return {"choose": choose, "report": _reports(reporting, arms, advance), "at": best(choose)}


def study_shared(
    halves: tuple[Half, Half], arms: Sequence[Arm], words: str, advance: Callable[[int], object]
) -> dict[str, Any]:
    """Steer by the arms that need no feature.

    Args:
        halves: See `study_feature`.
        arms: As `shared_arms` gives them.
        words: The concept, as it stands in the prompt.
        advance: Gets 1 after each arm.

    Returns:
        As `study_feature`; `choose` and `at` are those of DiffMean.
    """
    choosing, reporting = halves
    (direction,) = (arm for arm in arms if arm.name == DIFF_MEAN)
    choose = choosing.steered(direction)
    advance(1)
    report = _reports(reporting, arms, advance)
    for name, text in ((UNSTEERED, ""), (PROMPT, before(words))):
        report[name] = reporting.unsteered(text)
        advance(1)
    return {"choose": choose, "report": report, "at": best(choose)}


def _reports(
    reporting: Half, arms: Sequence[Arm], advance: Callable[[int], object]
) -> dict[str, Any]:
    report = {}
    for arm in arms:
        report[arm.name] = reporting.steered(arm)
        advance(1)
    return report


def reported_pushes(
    studies: Mapping[int, Mapping[str, Any]], shared: Mapping[str, Any],
    arms: Mapping[int, Sequence[Arm]], common: Sequence[Arm],
) -> dict[Key, tuple[Arm, float]]:  # fmt: skip
    """Arms and sizes of all pushes that are reported.

    Args:
        studies: By feature, as `study_feature` gives them.
        shared: As `study_shared` gives it.
        arms: Arms of each feature.
        common: Arms that all features share.
    """
    found: dict[Key, tuple[Arm, float]] = {}
    for latent, study in studies.items():
        for arm in arms[latent]:
            at = study["at"]
            found[latent, arm.name, at] = arm, study["report"][arm.name]["sizes"][at]
    chosen = {study["at"] for study in studies.values()}
    for arm in common:
        for at in sorted(chosen | ({shared["at"]} if arm.name == DIFF_MEAN else set())):
            found[None, arm.name, at] = arm, shared["report"][arm.name]["sizes"][at]
    return found


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
        one, neutral.on, [arm.pushed(size) for arm, size in pushes], num_tokens=neutral.num_tokens,
        batch_contexts=neutral.batch_contexts, advance=advance,
    )  # fmt: skip
    sums = sums[sums[:, 0, 0] > 0]  # a document's last token alone makes no prediction
    count, ce, kl = sums[..., 0], sums[..., 1], sums[..., 2]
    return [
        {"predictions": count[:, i].tolist(), "kl": kl[:, i].tolist(),
         "ce": (ce[:, i] - ce[:, 0]).tolist()}
        for i in range(1, len(pushes) + 1)
    ]  # fmt: skip
