"""Controls to hold an SAE against: bases and random directions, fitted here, and trained ones.

Every control is a `PlacedSAE`, so that an evaluation measures it as it measures the SAE.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sae.activations.sources import LMActivations
from sae.artifacts import load
from sae.artifacts.placed import PlacedSAE, source_of
from sae.artifacts.runs import name_runs, runs_in
from sae.dictionaries.baselines import BASELINES
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.reading import read_yaml
from sae.training.command import command, config_of

log = logging.getLogger(__name__)
FITTED: Mapping[str, Mapping[str, Any]] = {
    "neurons": {"architecture": "identity", "centre": "mean"},
    "pca": {"architecture": "pca"},
    "ica": {"architecture": "ica", "sample_vectors": 16_384},
    "random": {"architecture": "random", "centre": "mean"},
}
"""Controls that need no training. All codes are of x less the mean of the training rows."""
FROZEN, RANDOM_LM = "frozen decoder", "random LM"


@dataclass(frozen=True)
class Control:
    """A dictionary to compare with.

    Attributes:
        name: Name in tables; trained ones of one kind (seeds) have the same.
        placed: The dictionary at its place.
        dense: True if nearly all latents fire on every row: a basis as it is.
        facts: Facts about its fit, plain JSON values.
    """

    name: str
    placed: PlacedSAE
    dense: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


def fitted_controls(one: PlacedSAE, l0: float) -> list[Control]:
    """Neurons, PCA, ICA and random directions, each as it is and as top-k at the SAE's L0.

    They are fitted to the training rows of the same point, which are harvested where the cache
    lacks them; fits are cached. Codes with signs count as two latents, + and -.

    Args:
        one: The SAE; there are as many random directions as it has latents.
        l0: Its mean number of latents that fire; k is this, rounded.

    Returns:
        None at all where the LM's activations on the training text are not known.
    """
    source = one.source
    if _no_training_text(source):
        source = source_of(one.sae, device=str(one.sae.device))
    if not isinstance(source, LMActivations) or _no_training_text(source):
        log.warning("No controls are fitted: this SAE has no training text here.")
        return []
    source.prepare(splits=["train"])
    from sae.activations.datamodule import ActivationDataModule  # Lightning takes seconds
    from sae.training.baselines import fit_baseline

    data, found = ActivationDataModule(source), []
    for name, settings in FITTED.items():
        more: dict[str, Any] = {}
        if name == "random":
            more["dict_ratio"] = one.sae.d_sae / one.sae.d_in
        if name == "ica":
            more["max_iter"] = _ica_iterations(one.sae.d_in)
        widest = one.sae.d_sae if name == "random" else one.sae.d_in
        for form, k in (("", None), (" top-k", min(max(1, round(l0)), widest))):
            sae, facts = fit_baseline({"sae": {**settings, **more, "k": k}}, data)
            known = {key: value for key, value in facts.items() if not isinstance(value, list)}
            placed = PlacedSAE(sae.to(one.sae.device), one.source, name + form)
            found.append(Control(name + form, placed, k is None, known | {"k": k}))
    return found


def _ica_iterations(d_in: int) -> int:
    """100, fewer where vectors are wide: the time of one grows with the square of the width."""
    return max(25, min(100, round(100 * (768 / d_in) ** 2)))


def runs_beside(one: PlacedSAE, runs: Sequence[str]) -> list[PlacedSAE]:
    """Other runs at the point of an SAE, on the text that it is measured on.

    Args:
        one: The SAE.
        runs: Run folders, or sweep folders with several. Runs at other points are left out, and so
            is the SAE itself.

    Raises:
        ConfigError: If one reads another text or other contexts.
    """
    paths = [path for run in runs for path in runs_in(run)]
    named = name_runs(paths)[1] if paths else {}
    own = None if one.folder is None else one.folder.resolve()
    device, found = str(one.sae.device), []
    for name, run in named.items():
        folder = Path(run).expanduser()
        if folder.resolve() == own:
            continue
        other = PlacedSAE(
            load(run).to(device), lambda sae: _on_the_same_text(one, sae, device), name, folder
        )
        if str(other.ends) != str(one.ends):
            log.info("left out: %s, which is at %s, not at %s", name, other.ends, one.ends)
            continue
        other.prepare("test")
        ours, theirs = one.source.store("test"), other.source.store("test")
        equal = ours.spec.rows_per_context == theirs.spec.rows_per_context
        if not equal or not np.array_equal(ours.tokens, theirs.tokens):
            raise ConfigError(
                f"{run} has other test contexts than {one.name}: they differ in the text, the "
                "tokenizer, ctx, keep_first or the number of tokens. Choose a run on the same text."
            )
        found.append(other)
    return found


def other_seeds(one: PlacedSAE, runs: Sequence[str]) -> list[PlacedSAE]:
    """Runs that differ from an SAE by their seed alone; others of a sweep are left out.

    Args:
        one: The SAE.
        runs: See `runs_beside`.
    """
    seen, found = {seed_of(one.sae)}, []
    for other in runs_beside(one, runs):
        if but_seed(other.sae) is None or but_seed(other.sae) != but_seed(one.sae):
            continue
        if seed_of(other.sae) in seen:
            log.warning("left out: %s, which has the seed of another of these SAEs", other.name)
            continue
        seen.add(seed_of(other.sae))
        found.append(other)
    return found


def given_controls(one: PlacedSAE, runs: Sequence[str]) -> list[Control]:
    """Trained controls, named by their kind (`kind_of`), and others by their own names.

    Other seeds of the SAE and fitted baselines, which a sweep may hold as well, are left out.

    Args:
        one: The SAE.
        runs: See `runs_beside`.
    """
    return [
        Control(kind_of(other.sae) or other.name, other)
        for other in runs_beside(one, runs)
        if other.sae.config.architecture not in BASELINES
        and (but_seed(other.sae) is None or but_seed(other.sae) != but_seed(one.sae))
    ]


def but_seed(sae: SAE) -> dict[str, Any] | None:
    """All that decided the training but its seed; None for an SAE that does not say it.

    Equal for seeds of one SAE: settings, LM, text, contexts, rows that count, tokens and scaling.
    """
    metadata = sae.metadata
    settings: Any = metadata.get("settings")
    if not settings:
        return None
    kept = {name: value for name, value in settings.items() if name not in ("seed", "eval")}
    return {
        "settings": kept, "config": sae.config, "activations": made_of(sae),
        "normalize": metadata.get("normalize"), "tokens": metadata.get("tokens"),
    }  # fmt: skip


def seed_of(sae: SAE) -> Any:
    """The seed of the training; None where it is not known."""
    settings: Any = sae.metadata.get("settings") or {}
    return settings.get("seed")


def made_of(sae: SAE) -> dict[str, Any]:
    """Description of the activations that an SAE was trained on, without seeds and files."""
    known: Any = sae.metadata.get("activations") or {}
    return {name: value for name, value in known.items() if name not in ("key", "seed", "stores")}


def kind_of(sae: SAE) -> str:
    """`frozen decoder` or `random LM`, by what the SAE says of its training; empty for others."""
    made_of: Any = sae.metadata.get("activations") or {}
    settings: Any = sae.metadata.get("settings") or {}
    if (made_of.get("lm") or {}).get("random_weights"):
        return RANDOM_LM
    return FROZEN if (settings.get("sae") or {}).get("frozen_decoder") else ""


def missing_controls(one: PlacedSAE, given: Sequence[Control]) -> dict[str, str]:
    """Trained controls that were not given, each with the command that makes it.

    Args:
        one: The SAE; a control of itself is not missing.
        given: Controls that were given.
    """
    there = {control.name for control in given} | {kind_of(one.sae)}
    commands = {}
    for kind, changes in (
        (FROZEN, {"sae.frozen_decoder": True, "resample": "none"}),
        (RANDOM_LM, {"lm.random_weights": True}),
    ):
        if kind not in there:
            commands[kind] = _command(one, kind, changes)
    return commands


def _command(one: PlacedSAE, kind: str, changes: Mapping[str, Any]) -> str:
    metadata = one.sae.metadata
    file = None if one.folder is None else one.folder / "config.yaml"
    if file is not None and file.exists():
        config: Any = read_yaml(file)
    elif "settings" in metadata and one.point is not None:
        config = config_of(metadata)
    else:
        return "python train.py …: this SAE does not say how it was trained"
    config = dict(config)
    if kind == FROZEN and "frozen_decoder" not in config["sae"]:  # a tied decoder is the encoder
        kept = {name: config["sae"][name] for name in ("dict_ratio", "l1", "target_l0")
                if name in config["sae"]}  # fmt: skip
        config["sae"] = {"architecture": "l1", **kept}
    folder = f"{one.folder or Path('outputs/mine')}-{kind.replace(' ', '-').lower()}"
    return command(config, run_dir=folder, **changes)


def _no_training_text(source: Any) -> bool:
    """Tell whether a source reads a text that nothing was trained on."""
    if not isinstance(source, LMActivations):
        return True
    spec = source.specs["train"]
    return spec.val_fraction + spec.test_fraction >= 1


def _on_the_same_text(one: PlacedSAE, sae: SAE, device: str) -> Any:
    source = one.source
    return source_of(
        sae, corpus=source.corpus.to_config(), tokens=source.specs["test"].tokens, device=device
    )
