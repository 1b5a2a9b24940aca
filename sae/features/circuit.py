"""Circuits of latents: what drives a latent or a prediction, layer by layer.

A node is expanded by the latents of the layer below (expansion.py). The strongest become nodes and
are expanded in turn, down to the lowest layer that was given.

Source: arXiv 2309.08600, section 5.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.cached import cached_json
from sae.dictionaries.sae import SIGNED
from sae.errors import ConfigError
from sae.features.expansion import LEAST_CONTEXTS, Edge, Expansion, Search, expand
from sae.features.make import records
from sae.features.plain import WINDOW
from sae.features.records import Records
from sae.features.sets import sae_key
from sae.features.upstream import Upstream, activation_of, difference_of
from sae.language.lm import LanguageModel
from sae.metrics.bootstrap import Bootstrap
from sae.provenance import content_key
from sae.tasks.task import Task
from sae.types import Split

_VERSION = 2
_ELSEWHERE = ("text", "num_tokens", "batch_tokens")
"""Settings that are in the key of the records, or decide nothing."""


@dataclass(frozen=True)
class Node:
    """A node of a circuit.

    Attributes:
        level: Number of its SAE, the lowest first; one more than there are for a logit difference.
        name: Number of the latent, or the name of the task.
        expansion: Latents below it; None at the lowest layer and where there are too few contexts.
        note: Why it was not expanded.
    """

    level: int
    name: str
    expansion: Expansion | None = None
    note: str = ""

    @property
    def listed(self) -> list[Edge]:
        """The edges from below that are in the circuit, the strongest first."""
        return [] if self.expansion is None else [e for e in self.expansion.edges if e.listed]


@dataclass(frozen=True)
class Circuit:
    """Nodes by level and name, the root first.

    Attributes:
        nodes: The nodes.
        records: Records of each SAE's latents.
    """

    nodes: Mapping[tuple[int, str], Node]
    records: Sequence[Records] = field(repr=False)


def circuit(
    saes: Sequence[PlacedSAE], root: int | str | Task, how: Search, bootstrap: Bootstrap
) -> Circuit:
    """Search a circuit.

    Args:
        saes: SAEs of the residual stream of one LM, at different layers.
        root: A latent of the highest of them, or a task, whose logit difference is then the root.
        how: The settings.
        bootstrap: Settings of the intervals over contexts.

    Raises:
        ConfigError: If SAEs do not fit together, or the root is silent or too rare.
    """
    return _Searched(in_order(saes), how, bootstrap).from_root(root)


def in_order(saes: Sequence[PlacedSAE]) -> list[PlacedSAE]:
    """The SAEs, the lowest layer first.

    Raises:
        ConfigError: If there is one alone, or they do not fit together.
    """
    if len(saes) < 2:
        raise ConfigError(
            "A circuit has latents of several layers, and one SAE was given. Give one more, of "
            "another layer: 'run=[a,b]'."
        )
    by_layer: dict[int, PlacedSAE] = {}
    for one in saes:
        if not isinstance(one.source, LMActivations) or _layer(one) is None:
            where = "a folder of activations" if one.ends is None else one.ends
            raise ConfigError(
                f"{one.name} is at {where}. Circuits are of SAEs that read and write the residual "
                "stream of an LM at one layer (site=resid)."
            )
        if one.sae.config.activation in (*SIGNED, "nearest"):
            raise ConfigError(
                f"{one.name} has the activation {one.sae.config.activation}. Circuits are of SAEs "
                "whose latents have one sign and a gradient."
            )
        if one.source.specs["test"].lm != saes[0].source.specs["test"].lm:
            raise ConfigError(
                f"{saes[0].name} and {one.name} are SAEs of different LMs, or of one LM in two "
                "dtypes. Choose runs on the same LM."
            )
        other = by_layer.setdefault(_layer(one) or 0, one)
        if other is not one:
            raise ConfigError(
                f"{other.name} and {one.name} are both at {one.point}. Give one SAE a layer."
            )
    return [by_layer[layer] for layer in sorted(by_layer)]


def _layer(one: PlacedSAE) -> int | None:
    """The layer of an SAE of the residual stream; None for others."""
    return one.point.layer if one.point is not None and one.point.site == "resid" else None


class _Searched:
    """A search: SAEs and their records, the lowest layer first, and settings."""

    def __init__(self, saes: Sequence[PlacedSAE], how: Search, bootstrap: Bootstrap):
        split: Split | None = None if how.text == "auto" else how.text
        self.saes, self.how, self.bootstrap = saes, how, bootstrap
        self.records = [records(one, split=split, num_tokens=how.num_tokens) for one in saes]
        self.lm: LanguageModel = saes[-1].lm

    def from_root(self, root: int | str | Task) -> Circuit:
        node = self._of_task(root) if isinstance(root, Task) else self._of_asked(root)
        layer, found = [node], {(node.level, node.name): node}
        for level in reversed(range(node.level)):
            names = dict.fromkeys(str(edge.latent) for node in layer for edge in node.listed)
            layer = [self._of_latent(level, name) for name in names]
            found |= {(level, node.name): node for node in layer}
        return Circuit(found, self.records)

    def _of_task(self, task: Task) -> Node:
        if len(task) < LEAST_CONTEXTS:
            raise ConfigError(
                f"{task.name} has {len(task)} prompts; {LEAST_CONTEXTS} or more are needed, or "
                "there is no interval. Give more prompts."
            )
        upstream = Upstream(self.lm, difference_of(task), self.saes[-1], self.how.batch_tokens)
        expansion = expand(upstream, None, self.how, self.bootstrap, task.name)
        return Node(len(self.saes), task.name, expansion)

    def _of_asked(self, latent: int | str) -> Node:
        try:
            name = self.records[-1][latent].name
        except KeyError as error:
            raise ConfigError(f"eval.circuit.feature={latent}: {error.args[0]}") from None
        node = self._of_latent(len(self.saes) - 1, name)
        if node.expansion is None:
            raise ConfigError(
                f"eval.circuit.feature={latent} fires too rarely: {node.note}. Choose another "
                "latent, or read more text (eval.circuit.num_tokens, eval.circuit.text)."
            )
        return node

    def _of_latent(self, level: int, name: str) -> Node:
        if level == 0:
            return Node(level, name, note="the lowest layer")
        one, below, latent = self.saes[level], self.saes[level - 1], int(name)
        contexts = self._contexts(level, name)
        if len(contexts) < LEAST_CONTEXTS:
            few = f"{len(contexts)} contexts with half its maximum; {LEAST_CONTEXTS} are needed"
            return Node(level, name, note=few)

        def make() -> dict[str, Any]:
            target = activation_of(one, latent, contexts)
            upstream = Upstream(self.lm, target, below, self.how.batch_tokens)
            words = f"latent {name} of {one.point}"
            found = expand(upstream, one.sae.W_dec[latent], self.how, self.bootstrap, words)
            return found.to_json()

        file = self.records[level].folder / f"below-{self._key(below)}" / f"{name}.json"
        return Node(level, name, Expansion.from_json(cached_json(file, make)))

    def _contexts(self, level: int, name: str) -> list[Int[Tensor, " _"]]:
        found = self.records[level]
        document = self.saes[level].source.store(found.facts["split"]).document
        return strong_contexts(found, name, document, self.how.contexts, self.how.seed)

    def _key(self, below: PlacedSAE) -> str:
        """Changes with whatever decides an expansion, besides the SAE and the text above."""
        decides = [name for name in Search.model_fields if name not in _ELSEWHERE]
        return content_key({
            "version": _VERSION, "below": sae_key(below), "point": str(below.point),
            "counted": below.source.counted.to_json(),
            "keep_first": below.source.specs["test"].keep_first,
            "how": {name: getattr(self.how, name) for name in decides},
            "bootstrap": self.bootstrap.model_dump(),
        })  # fmt: skip


def strong_contexts(
    found: Records, name: str, document: Int[np.ndarray, "contexts ctx"], count: int, seed: int
) -> list[Int[Tensor, " _"]]:
    """Contexts where a latent fires with at least half its maximum, each cut after that token.

    They are drawn at random, of different documents as far as there are such; of contexts with
    equal tokens before the firing only one is taken.

    Args:
        found: The records.
        name: The latent.
        document: Document of each token of the split.
        count: Number of contexts.
        seed: Seed of the draw.
    """
    fired = found.firings(name)
    strong = np.flatnonzero(fired.value >= fired.value.max(initial=0) / 2)
    strong = np.random.default_rng([seed, int(name)]).permutation(strong)
    places = zip(*(part.tolist() for part in found.locate(fired.row[strong])), strict=True)
    first, later, seen = [], [], set()
    for context, end in places:
        tokens = found.text.tokens[context, : end + 1]
        own, window = ("document", document[context, end]), tokens[-WINDOW:].tobytes()
        if context not in seen and window not in seen:
            (later if own in seen else first).append(torch.from_numpy(tokens.astype(np.int64)))
            seen |= {context, window, own}
    return (first + later)[:count]
