"""Changes of an SAE's LM and text in their places: another LM in the same folder."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sae.activations.folder import FolderActivations
from sae.activations.sources import ActivationSource, LMActivations
from sae.dictionaries.sae import SAE
from sae.provenance import content_key


def changed(sae: SAE, source: ActivationSource) -> tuple[str, ...]:
    """Names of LM and text that mean other files than in the training.

    Keys are compared, which are hashes of content: a folder that was moved is the same, one whose
    files were overwritten is not. An LM or text that the user chose anew does not count as changed.

    Args:
        sae: A saved SAE.
        source: Source that it is measured on, prepared.

    Returns:
        In words, for example `the LM in /data/lm`; empty where nothing changed.
    """
    trained: Any = sae.metadata["activations"]
    if isinstance(source, FolderActivations):
        same = source.describe()["key"] == trained["key"]
        return () if same else (f"the activations in {source.path}",)
    if not isinstance(source, LMActivations) or "stores" not in trained:
        return ()
    test = source.specs["test"]
    sides = {"lm": (source.source.to_config(), test.lm), "corpus": (
        source.corpus.to_config(), test.corpus
    )}  # fmt: skip
    named = {side: config for side, (config, _) in sides.items() if config == trained[side]}
    if identities := trained.get("identities"):
        others = [s for s in named if content_key(sides[s][1]) != identities[s]]
    else:  # saved when only the key of both together was kept
        key = replace(test, tokens=trained["tokens"]["test"]).key
        known = len(named) == 2 and test.test_fraction == trained["test_fraction"]
        others = list(named) if known and key != trained["stores"]["test"] else []
    words = [f"the {_WORDS[side]} {_place(named[side])}" for side in others]
    return tuple(words) if identities else tuple([" or ".join(words)] if words else [])


def key_of(source: ActivationSource) -> str:
    """Key of the activations as they are now, for the name of a result."""
    if isinstance(source, LMActivations):
        return source.specs["test"].key
    return str(source.describe()["key"])


_WORDS = {"lm": "LM", "corpus": "text"}


def _place(config: Mapping[str, Any]) -> str:
    path = config.get("path") or config.get("dataset")
    return f"in {path}" if path else str(config.get("name"))
