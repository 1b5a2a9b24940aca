"""Circuits as graphs of plain values: nodes and links, as JSON and other tools take them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sae.artifacts.placed import PlacedSAE
from sae.features.circuit import Circuit, Node
from sae.features.expansion import Edge

Graph = dict[str, list[dict[str, Any]]]
"""`nodes`, each with a `node_id`, and `links` from a `source` to a `target` with a `weight`."""


def graph_of(found: Circuit, saes: Sequence[PlacedSAE]) -> Graph:
    """The nodes of a circuit, the root first, and its listed edges.

    Args:
        found: The circuit.
        saes: Its SAEs, the lowest layer first.
    """

    def name(level: int, latent: object) -> str:
        return f"{saes[level].point}/{latent}" if level < len(saes) else f"logits/{latent}"

    nodes, links = [], []
    for node in found.nodes.values():
        target = name(node.level, node.name)
        nodes.append({"node_id": target, **_of_node(node, found, saes)})
        links += [
            {"source": name(node.level - 1, edge.latent), "target": target, **_of_edge(edge)}
            for edge in node.listed
        ]
    return {"nodes": nodes, "links": links}


def contracted(graph: Graph) -> Graph:
    """The graph without identity-like links, the latents at both ends of which become one node.

    The upper latent stays and names the lower ones in `same`. A lower latent that drives other
    nodes as well stays a node, and its link a marked one.
    """
    drives = {node["node_id"]: 0 for node in graph["nodes"]}
    for link in graph["links"]:
        drives[link["source"]] += 1
    merged = {
        link["source"]: link["target"] for link in graph["links"]
        if link["identity"] and drives[link["source"]] == 1
    }  # fmt: skip

    def final(node: str) -> str:
        while node in merged:
            node = merged[node]
        return node

    kept = {n["node_id"]: dict(n, same=[]) for n in graph["nodes"] if n["node_id"] not in merged}
    for lower in merged:
        kept[final(lower)]["same"].append(lower)
    links = [dict(link, target=final(link["target"])) for link in graph["links"]
             if link["source"] not in merged]  # fmt: skip
    return {"nodes": list(kept.values()), "links": links}


def latents_of(graph: Graph, point: str) -> dict[str, list[Any]]:
    """`latents` of a point, and their `weights`: the largest share each drives; the root's 1."""
    weights: dict[int, float] = {}
    for node in graph["nodes"]:
        place, _, latent = node["node_id"].partition("/")
        if place == point:
            own = [abs(one["share"]) for one in graph["links"] if one["source"] == node["node_id"]]
            weights[int(latent)] = max(own, default=1.0)
    falling = sorted(weights, key=lambda latent: -weights[latent])
    return {"latents": falling, "weights": [weights[latent] for latent in falling]}


def _of_node(node: Node, found: Circuit, saes: Sequence[PlacedSAE]) -> Mapping[str, Any]:
    plain: dict[str, Any] = {"kind": "logit difference", "layer": None, "name": node.name,
                             "note": node.note}  # fmt: skip
    if node.level < len(saes):
        point = saes[node.level].point
        assert point is not None
        plain |= {"kind": "latent", "layer": point.layer}
        try:
            record = found.records[node.level][node.name]
            plain |= {"max": record.max, "density": record.density}
        except KeyError:  # of a prompt, and silent on the text
            plain |= {"max": None, "density": 0.0}
    expansion, missed = node.expansion, None
    if expansion is not None:
        plain |= {
            "contexts": expansion.contexts, "activation": expansion.clean,
            "live_below": expansion.live, "spearman": expansion.spearman,
        }  # fmt: skip
        missed = expansion.missed
    if missed is not None:
        plain["missed"] = {"latent": missed.latent, "weight": missed.effect, "share": missed.share}
    return plain


def _of_edge(edge: Edge) -> Mapping[str, Any]:
    return {
        "weight": edge.effect, "low": edge.low, "high": edge.high, "share": edge.share,
        "estimate": edge.estimate, "random_step": edge.step, "contexts": edge.fires,
        "cosine": edge.cosine, "identity": edge.identity,
    }  # fmt: skip
