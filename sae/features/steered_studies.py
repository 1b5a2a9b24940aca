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
    OF_FEATURE,
    OF_SHARED,
    Cost,
    Half,
    Key,
    Neutral,
    arms_of,
    costs,
    reported_pushes,
    shared_arms,
    study_feature,
    study_shared,
)
from sae.features.written import Pen
from sae.probing.judge import Judge
from sae.progress import progress
from sae.provenance import cache_dir, content_key

_FORMAT = 4
"""Counts up when what is kept in the cache changes its meaning."""


class Studied(NamedTuple):
    """Studies of steering.

    Args:
        studies: By feature, as `study_feature` gives them.
        shared: Of the arms that all features share, as `study_shared` gives it.
        neutral: Costs of the pushes that are reported.
    """

    studies: dict[int, dict[str, Any]]
    shared: dict[str, Any]
    neutral: dict[Key, Cost]


def study_all(
    one: PlacedSAE, latents: Sequence[int], found: Contrast, pens: tuple[Pen, Pen], judge: Judge,
    *, targets: Sequence[float], start: float, words: str, seed: int, neutral: Neutral,
    decided: Mapping[str, Any],
) -> Studied:  # fmt: skip
    """Steer by each feature and by the arms that all share.

    The shared arms need no SAE: those of other seeds at the same point take them from the cache.

    Args:
        one: The SAE.
        latents: The features.
        found: Gives DiffMean and the live latents.
        pens: Write after the choosing and after the reporting prompts.
        judge: Reads what was written.
        targets: KLs in nats.
        start: A size that searches start from.
        words: The concept, as it stands in the prompt.
        seed: Of the draws and of the controls.
        neutral: Neutral text.
        decided: Plain values that decide the texts as well.
    """
    identity = {
        "format": _FORMAT, "lm": dict(one.lm.identity), "dtype": str(one.lm.dtype),
        "point": str(one.point), "counted": one.counted and one.counted.to_json(),
        "kl": targets, "words": words, "seed": seed, **decided,
    }  # fmt: skip
    halves: list[Half] = []

    def both() -> tuple[Half, Half]:
        """Unsteered texts are written once, and only where an arm is not in the cache."""
        if not halves:
            halves.extend(Half(pen, judge, targets, start) for pen in pens)
        return halves[0], halves[1]

    prompts = len(pens[1].prompts)
    own = {latent: arms_of(one, latent, found, prompts, seed) for latent in latents}
    common = shared_arms(found.direction, seed)
    steps, shared_steps = 1 + len(OF_FEATURE), 1 + len(OF_SHARED)
    with progress("steer", steps * len(own) + shared_steps, "arms") as advance:
        shared = _kept(
            identity, shared_steps, advance, lambda: study_shared(both(), common, words, advance)
        )
        studies = {
            latent: _kept(
                identity | {"sae": sae_key(one), "latent": latent}, steps, advance,
                lambda arms=arms: study_feature(both(), arms, advance),
            )
            for latent, arms in own.items()
        }  # fmt: skip
    pushes = reported_pushes(studies, shared, own, common)
    store = one.source.store(neutral.on)
    contexts = contexts_in(store, neutral.num_tokens)
    identity |= {
        "sae": sae_key(one), "text": store.spec.key, "contexts": contexts,
        "pushes": [[*key, size] for key, (_, size) in pushes.items()],
    }  # fmt: skip
    passes = contexts * (1 + len(pushes))
    with progress("cost of steering", passes, "contexts") as advance:
        measured = _kept(identity, passes, advance, lambda: {
            "costs": costs(one, list(pushes.values()), neutral, advance)
        })  # fmt: skip
    return Studied(studies, shared, dict(zip(pushes, measured["costs"], strict=True)))


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
