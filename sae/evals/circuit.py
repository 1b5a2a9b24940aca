"""`circuit`: the latents of lower layers that drive a latent, layer by layer."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

import numpy as np

from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.base import PLACING, Estimate, Measured, Resampled, register
from sae.features.circuit import Circuit, circuit, in_order
from sae.features.expansion import Edge, Search
from sae.features.graph import contracted, graph_of, latents_of
from sae.features.sets import first_latent, sae_key
from sae.settings import setting
from sae.tables import Table, Type
from sae.tasks.choose import all_of
from sae.tasks.task import LEAST_ACCURACY, Task
from sae.types import Split

_EDGES: dict[str, tuple[Type, str]] = {
    "layer": ("int64", ""), "latent": ("int64", ""), "target_layer": ("int64", ""),
    "target": ("string", ""), "effect": ("float64", "activation"),
    "low": ("float64", "activation"), "high": ("float64", "activation"),
    "share": ("float64", "share"), "estimate": ("float64", "activation"),
    "step": ("float64", "activation"), "cosine": ("float64", "cosine"), "fires": ("int64", ""),
    "ranked": ("bool", ""), "listed": ("bool", ""),
}  # fmt: skip
_SHOWN = 5
"""Contexts of each latent that are kept for people."""


@register
class CircuitEval(Search, Resampled):
    """The causal tree of a latent (arXiv 2309.08600, section 5.3; docs/guides/circuits.md).

    An edge is the mean fall of the upper latent at its firing token when the lower one is set to
    zero at all positions that count, the SAE's error kept. Table `edges` has a row for every
    ablation, whether the edge is listed or not.
    """

    name: ClassVar[str] = "circuit"
    takes: ClassVar[Literal["one", "several", "both"]] = "several"
    least: ClassVar[int] = 2
    unused: ClassVar[tuple[str, ...]] = PLACING
    feature: int | str | None = setting(
        None,
        help="the root: a latent of the highest layer, or a features.json whose first latent it is",
    )  # fmt: skip
    task: str = setting(
        "", help="or a logit difference: ioi, agreement, or a JSONL file as eval.ioi.task takes"
    )
    identity: Literal["mark", "contract"] = setting(
        "mark", help="what is done with edges between latents of nearly the same direction"
    )

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Search the circuit of one latent."""
        saes = in_order(subjects)
        root = self._root(saes[-1])
        start = time.perf_counter()
        found = circuit(saes, root, self, self.bootstrap)
        seconds = time.perf_counter() - start
        graph = graph_of(found, saes)
        top = next(iter(found.nodes.values()))
        assert top.expansion is not None
        facts = found.records[-1].facts
        return Measured(
            on=facts["split"],
            metrics=_metrics(found),
            tokens={
                "tokens": facts["tokens"], "contexts": top.expansion.contexts,
                "nodes": len(graph["nodes"]), "links": len(graph["links"]),
            },
            details={
                "root": graph["nodes"][0]["node_id"],
                **(contracted(graph) if self.identity == "contract" else graph),
                "text": facts["text"],
                "lm": facts["lm"],
                "saes": [
                    {"point": str(one.point), "name": one.name, "sae": sae_key(one),
                     "folder": None if one.folder is None else str(one.folder),
                     **latents_of(graph, str(one.point))}
                    for one in saes
                ],
                "records": _records(found, saes),
                "seconds": round(seconds, 1),
            },
            tables={"edges": Table.of(_EDGES, _rows(found, saes))},
        )  # fmt: skip

    def _root(self, highest: PlacedSAE) -> int | str | Task:
        """The latent, or the task, whose logit difference is explained."""
        if self.feature is not None and self.task:
            raise ConfigError(
                f"eval.circuit.feature={self.feature} and eval.circuit.task={self.task} are two "
                "roots. Give one of them."
            )
        if self.task:
            task = all_of(self.task, highest.lm.tokenizer, self.contexts, seed=self.seed)
            assert highest.point is not None
            task.check(highest.lm, highest.point, highest.counted, least=LEAST_ACCURACY)
            return task
        if self.feature is None:
            raise ConfigError(
                "eval.circuit.feature is not given. Give the number of a latent of "
                f"{highest.name} (at {highest.point}): eval.circuit.feature=123."
            )
        return first_latent(self.feature, highest)


def _records(found: Circuit, saes: Sequence[PlacedSAE]) -> dict[str, Any]:
    """The records of the circuit's latents; of those that are silent on the text there are none."""
    shown = {}
    for level, name in found.nodes:
        if level < len(saes):
            with suppress(KeyError):
                shown[f"{saes[level].point}/{name}"] = found.records[level][name].as_plain(_SHOWN)
    return shown


def _metrics(found: Circuit) -> dict[str, Estimate]:
    """Sizes as shares of the activation above; means over what was measured, without intervals."""
    expansions = [node.expansion for node in found.nodes.values() if node.expansion is not None]
    agreements = [one.spearman for one in expansions if one.spearman is not None]
    listed = [edge for one in expansions for edge in one.edges if edge.listed]
    steps = [abs(edge.step / one.clean) for one in expansions for edge in one.edges
             if edge.step is not None]  # fmt: skip
    drawn = [abs(edge.share) for one in expansions for edge in one.edges if not edge.ranked]
    return {
        "spearman": _mean(agreements),
        "listed": _mean([abs(edge.share) for edge in listed]),
        "random_step": _mean(steps),
        "random_latent": _mean(drawn),
        "largest_missed": Estimate(max(drawn) if drawn else None),
        "identity": _mean([float(edge.identity) for edge in listed]),
    }


def _mean(values: Sequence[float]) -> Estimate:
    return Estimate(float(np.mean(values)) if values else None)


def _rows(found: Circuit, saes: Sequence[PlacedSAE]) -> Iterator[dict[str, Any]]:
    layers = [one.point.layer for one in saes if one.point is not None]
    for node in found.nodes.values():
        edges: Sequence[Edge] = () if node.expansion is None else node.expansion.edges
        for edge in edges:
            above = layers[node.level] if node.level < len(layers) else None
            yield {
                **edge._asdict(), "layer": layers[node.level - 1],
                "target_layer": above, "target": node.name,
            }  # fmt: skip
