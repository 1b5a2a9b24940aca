"""Files of the evaluation `circuit`: a page with the tree, GraphML, sets of latents."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sae.evals.base import EvalResult
from sae.features.plain import marked
from sae.features.sets import FeatureSet
from sae.language.pieces import visible
from sae.reports.files import write_bytes
from sae.reports.graphml import graphml
from sae.reports.page import Cell, Plot, Section, Table, interval, number, plain, render
from sae.reports.style import GREY, TONES

_COLOURS = {True: TONES[0], False: TONES[1]}
"""Colours of links that drive, and that inhibit."""


def write_circuit(result: EvalResult, folder: Path) -> None:
    """Write `index.html`, `circuit.graphml` and a features.json for each layer.

    Args:
        result: Result of the evaluation `circuit`.
        folder: Folder to write them to.
    """
    details = result.details
    folder.mkdir(parents=True, exist_ok=True)
    for one in details["saes"]:
        made_by = {"eval": "circuit", "root": details["root"], "settings": result.settings}
        latents, weights = tuple(one["latents"]), tuple(one["weights"])
        found = FeatureSet(latents, weights, one["sae"], one["point"], made_by)
        found.save(folder / f"features-{one['point']}.json")
    write_bytes(folder / "circuit.graphml", graphml(details["nodes"], details["links"]))
    write_bytes(folder / "index.html", _page(result, _links(details, folder)))


def _links(details: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Address of each latent's dashboard page, relative to a folder, where there is a dashboard."""
    dashboards = {}
    for one in details["saes"]:
        pages = Path(one["folder"] or "").glob("evals/dashboard*/index.html")
        if one["folder"] and (newest := max(pages, key=os.path.getmtime, default=None)):
            dashboards[one["point"]] = quote(os.path.relpath(newest, folder.resolve()))
    found = {}
    for node in details["records"]:
        point, _, latent = node.partition("/")
        if point in dashboards:
            found[node] = f"{dashboards[point]}#/latent/{latent}"
    return found


def _page(result: EvalResult, links: Mapping[str, str]) -> bytes:
    details, metrics = result.details, result.metrics
    cards = {}
    for node, record in details["records"].items():
        point, _, latent = node.partition("/")
        card = {**record, "latent": f"{latent} of {point}", "link": links.get(node, "")}
        cards.setdefault(point, []).append(card)
    sections = [
        Section("The tree", plots=[_tree(details)]),
        Section("Links", tables=[_edges(details, links)]),
        Section("Nodes", tables=[_nodes(details, links)]),
        *(Section(f"Latents of {point}", latents=those) for point, those in cards.items()),
    ]
    tiles = [
        {"label": label, "value": number("", metrics[name].value).text, "note": note}
        for label, name, note in (
            ("Links", "listed", "mean share of the activation above"),
            ("Random steps", "random_step", "of equal length, the control"),
            ("Random latents", "random_latent", "that fire there, the control"),
            ("Largest missed", "largest_missed", "among the random latents"),
            ("Spearman", "spearman", "first-order estimate and ablation"),
        )
    ]
    settings = result.settings
    subtitle = (
        f"{details['lm']} · {details['text']} · up to {settings['contexts']} contexts a latent · "
        f"{settings['exact']} latents by estimate and {settings['random']} at random ablated below "
        "each: set to zero at all positions that count, the SAE's error kept"
    )
    return render(f"Circuit of {details['root']}", subtitle, sections, tiles)


def _tree(details: Mapping[str, Any]) -> Plot:
    """Layers from left to right, the root on the right; links as wide as their shares."""
    nodes, links = details["nodes"], details["links"]
    places, columns = _layout(nodes, links), _columns(nodes)
    largest = max((abs(link["share"]) for link in links), default=1.0) or 1.0
    traces: list[dict[str, Any]] = []
    shown: set[str] = set()
    for link in links:
        drives = link["weight"] > 0
        name = "nearly the same direction" if link["identity"] else (
            "drives" if drives else "inhibits"
        )  # fmt: skip
        ends = [places[link[end]] for end in ("source", "target")]
        traces.append({
            "type": "scatter", "mode": "lines", "x": [x for x, _ in ends], "name": name,
            "y": [y for _, y in ends], "hoverinfo": "skip", "legendgroup": name,
            "showlegend": name not in shown,
            "line": {"color": _COLOURS[drives], "width": 0.5 + 7.5 * abs(link["share"]) / largest,
                     "dash": "dot" if link["identity"] else "solid"},
        })  # fmt: skip
        shown.add(name)
    sides = {0: "middle left", len(columns) - 1: "middle right"}
    traces.append({
        "type": "scatter", "mode": "markers+text", "name": "latents", "showlegend": False,
        "x": [places[node["node_id"]][0] for node in nodes],
        "y": [places[node["node_id"]][1] for node in nodes],
        "text": [plain(_label(node, details)) for node in nodes],
        "textposition": [sides.get(places[n["node_id"]][0], "top center") for n in nodes],
        "hovertext": [_hover(node, details) for node in nodes], "hoverinfo": "text",
        "marker": {"size": 10, "color": GREY},
    })  # fmt: skip
    layout = {
        "xaxis": {"tickvals": list(range(len(columns))), "ticktext": columns, "showgrid": False,
                  "range": [-0.7, len(columns) - 0.3]},
        "yaxis": {"visible": False}, "showlegend": True,
    }  # fmt: skip
    note = "links as wide as their shares of the activation above; point at a latent to read it"
    return Plot("From low layers to the root", note, traces, layout, wide=True)


def _columns(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the columns, the root's last."""
    points = [node["node_id"].partition("/")[0] for node in nodes]
    return list(dict.fromkeys(points))[::-1]


def _layout(
    nodes: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[int, float]]:
    """Column and height of each node: a node stands in the middle of those that it first lists."""
    columns, below = _columns(nodes), {node["node_id"]: [] for node in nodes}
    for link in links:
        below[link["target"]].append(link["source"])
    places: dict[str, tuple[int, float]] = {}
    free = 0.0

    def put(node: str) -> float:
        nonlocal free
        column = columns.index(node.partition("/")[0])
        places[node] = (column, 0.0)  # found, before a lower one asks for it
        own = [put(lower) for lower in below[node] if lower not in places]
        height = sum(own) / len(own) if own else free
        free -= 0 if own else 1
        places[node] = (column, height)
        return height

    for node in nodes:  # the root first; others are reached from it
        if node["node_id"] not in places:
            put(node["node_id"])
    return places


def _label(node: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    """The latent and the token that holds most of its activation."""
    record = details["records"].get(node["node_id"])
    token = visible(record["tokens"][0][0]) if record and record["tokens"] else ""
    return f"{node['name']} {token}".strip()


def _hover(node: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    record = details["records"].get(node["node_id"], {"contexts": [], "top_logits": []})
    lines = [node["node_id"], *map(marked, record["contexts"][:3])]
    if node.get("same"):
        lines.append("same direction: " + ", ".join(node["same"]))
    if record["top_logits"]:
        lines.append("raises " + " ".join(map(visible, record["top_logits"][:6])))
    return "<br>".join(plain(line) for line in lines)


def _edges(details: Mapping[str, Any], pages: Mapping[str, str]) -> Table:
    columns = ["from", "to", "share", "effect", "interval", "estimate", "random step", "cosine",
               "contexts"]  # fmt: skip
    rows = [
        [*(Cell(link[end], link=pages.get(link[end], "")) for end in ("source", "target")),
         number("", link["share"]), number("", link["weight"]),
         Cell(interval("", link["low"], link["high"]), link["low"]),
         number("", link["estimate"]), number("", link["random_step"]),
         Cell(f"{number('', link['cosine']).text}{' ≈' if link['identity'] else ''}",
              link["cosine"]),
         number("", link["contexts"])]
        for link in details["links"]
    ]  # fmt: skip
    note = (
        "effect: fall of the latent above at its firing token when the lower one is set to zero; "
        "negative: it inhibits; ≈: atoms of nearly the same direction; contexts: in which the "
        "lower one fires"
    )
    return Table("Effects of lower latents", columns, rows, note, words=2)


def _nodes(details: Mapping[str, Any], pages: Mapping[str, str]) -> Table:
    columns = ["latent", "note", "contexts", "activation", "fire below", "Spearman",
               "largest missed", "its share"]  # fmt: skip
    rows = []
    for node in details["nodes"]:
        missed = node.get("missed") or {"latent": None, "share": None}
        same = f"with {', '.join(node['same'])}" if node.get("same") else ""
        rows.append([
            Cell(node["node_id"], link=pages.get(node["node_id"], "")), Cell(node["note"] or same),
            *(number("", node.get(name)) for name in ("contexts", "activation", "live_below",
                                                      "spearman")),
            number("", missed["latent"]), number("", missed["share"]),
        ])  # fmt: skip
    note = (
        "fire below: latents of the layer below that fire in the contexts, all others have no "
        "effect; largest missed: the strongest of those that were drawn at random"
    )
    return Table("Ablated below each latent", columns, rows, note, words=2)
