"""Studies of all features and of the arms that they share, each out of the cache."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from filelock import FileLock

from sae.artifacts.placed import PlacedSAE
from sae.cached import cached_json
from sae.features.make import contexts_in
from sae.features.output_effects import Contrast
from sae.features.sets import sae_key
from sae.features.steered import (
    DIFF_MEAN,
    NOISE,
    OF_FEATURE,
    UNPUSHED,
    Cost,
    Half,
    Key,
    Neutral,
    Record,
    arms_of,
    costs,
    study_feature,
    study_shared,
)
from sae.features.steering import Arm
from sae.features.written import Pen
from sae.probing.judge import Judge
from sae.progress import progress
from sae.provenance import cache_dir, content_key

CEILING = f"{DIFF_MEAN} at its own KL"
_FORMAT = 5
"""Counts up when what is kept in the cache changes its meaning."""


class Studied(NamedTuple):
    """Studies of steering.

    Args:
        features: By latent, as `study_feature` gives them.
        shared: Study of the arms that all features share, as `study_shared` gives it.
        shared_at: Records of the shared arms with a push, by arm and number of the target.
        neutral: Costs of the pushes that are reported.
    """

    features: dict[int, dict[str, Any]]
    shared: dict[str, Any]
    shared_at: dict[tuple[str, int], Record]
    neutral: dict[Key, Cost]

    def report(self, latent: int, arm: str) -> Record:
        """An arm on the reporting prompts, at the target that a feature chose."""
        study = self.features[latent]
        if arm == CEILING:
            return self.shared_at[DIFF_MEAN, self.shared["at"]]
        for own in (study, self.shared):
            if arm in own["report"]:
                return own["report"][arm]
        return self.shared_at[arm, study["at"]]

    def cost(self, latent: int, arm: str) -> Cost:
        """Sums over neutral documents under an arm with a push."""
        study = self.features[latent]
        if arm == CEILING:
            return self.neutral[None, DIFF_MEAN, self.shared["at"]]
        return self.neutral[latent if arm in study["report"] else None, arm, study["at"]]


def study_all(
    one: PlacedSAE, latents: Sequence[int], found: Contrast, pens: tuple[Pen, Pen], judge: Judge,
    *, targets: Sequence[float], start: float, words: str, seed: int, neutral: Neutral,
    decided: Mapping[str, Any],
) -> Studied:  # fmt: skip
    """Steer by each feature and by the arms that all share.

    The shared arms need no SAE: those of other SAEs at the same point take them from the cache.

    Args:
        one: The SAE.
        latents: The features.
        found: Gives DiffMean and the live latents.
        pens: Write after the choosing and after the reporting prompts.
        judge: Reads what was written.
        targets: KLs in nats.
        start: A size that searches start from.
        words: The concept, as it stands in the prompt.
        seed: Seed of the draws and of the controls.
        neutral: Neutral text.
        decided: Plain values that decide the texts as well.
    """
    identity = {
        "format": _FORMAT, "lm": dict(one.lm.identity), "dtype": str(one.lm.dtype),
        "point": str(one.point), "counted": one.counted and one.counted.to_json(),
        "keep_first": one.source.specs["test"].keep_first,
        "kl": targets, "words": words, "seed": seed, **decided,
    }  # fmt: skip
    of_sae = identity | {"sae": sae_key(one)}
    halves: list[Half] = []

    def both() -> tuple[Half, Half]:
        """Unsteered texts are written once, and only where an arm is not in the cache."""
        if not halves:
            halves.extend(Half(pen, judge) for pen in pens)
        return halves[0], halves[1]

    prompts = len(pens[1].prompts)
    own = {latent: arms_of(one, latent, found, prompts, seed) for latent in latents}
    common = {NOISE: Arm(NOISE, seed=seed), DIFF_MEAN: Arm(DIFF_MEAN, found.direction)}
    steps, shared_steps = 1 + len(OF_FEATURE), 1 + len(UNPUSHED)
    with progress("steer", steps * len(own) + shared_steps, "arms") as advance:
        shared = _kept(identity, shared_steps, advance, lambda: study_shared(
            both(), common[DIFF_MEAN], words, targets, start, advance
        ))  # fmt: skip
        features = {
            latent: _kept(
                of_sae | {"latent": latent}, steps, advance,
                lambda arms=arms: study_feature(both(), arms, targets, start, advance),
            )
            for latent, arms in own.items()
        }  # fmt: skip
    chosen = {study["at"] for study in features.values()}
    wanted = [(NOISE, at) for at in sorted(chosen)]
    wanted += [(DIFF_MEAN, at) for at in sorted(chosen | {shared["at"]})]
    with progress("steer by shared arms", len(wanted), "arms") as advance:
        shared_at = {
            (arm, at): _kept(
                identity | {"arm": arm, "target": targets[at]}, 1, advance,
                lambda arm=arm, at=at: both()[1].steered(
                    common[arm], [targets[at]], shared["choose"][at]["size"]
                )[0],
            )
            for arm, at in wanted
        }  # fmt: skip
    pushes: dict[Key, tuple[Arm, float]] = {
        (latent, arm.name, study["at"]): (arm, study["report"][arm.name]["size"])
        for latent, study in features.items() for arm in own[latent]
    }  # fmt: skip
    pushes |= {(None, arm, at): (common[arm], shared_at[arm, at]["size"]) for arm, at in wanted}
    store = one.source.store(neutral.on)
    contexts = contexts_in(store, neutral.num_tokens)
    passes = contexts * (1 + len(pushes))
    of_text = of_sae | {
        "text": store.spec.key, "contexts": contexts,
        "pushes": [[*key, size] for key, (_, size) in pushes.items()],
    }  # fmt: skip
    with progress("cost of steering", passes, "contexts") as advance:
        measured = _kept(of_text, passes, advance, lambda: {
            "costs": costs(one, list(pushes.values()), neutral, advance)
        })  # fmt: skip
    costs_of = dict(zip(pushes, measured["costs"], strict=True))
    return Studied(features, shared, shared_at, costs_of)


def _kept(
    identity: Mapping[str, Any], steps: int, advance: Callable[[int], object],
    make: Callable[[], dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """A study out of the cache, made and kept there first where it lacks it."""
    file = cache_dir() / "steering" / f"{content_key(identity)}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    made: list[dict[str, Any]] = []
    with FileLock(f"{file}.lock"):  # processes that want the same at the same time make it once
        found = cached_json(file, lambda: made.append(make()) or made[0])
    if not made:
        advance(steps)
    return found
