"""Graphs as GraphML, which Gephi, yEd, Cytoscape and networkx read."""

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

_TYPES = {bool: "boolean", int: "long", float: "double", str: "string"}
"""GraphML's names of types; values of others, such as lists, are left out."""


def graphml(nodes: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]) -> bytes:
    """A directed graph as a GraphML document.

    Args:
        nodes: Each with a `node_id`; further values are attributes, None ones are left out.
        links: Links, each with a `source` and a `target`, ids of nodes.

    Example:
        >>> text = graphml([{"node_id": "a"}, {"node_id": "b"}],
        ...                [{"source": "a", "target": "b", "weight": 0.5}])
        >>> b'<edge source="a" target="b">' in text, b'attr.name="weight"' in text
        (True, True)
    """
    root = Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    own = {"node": ("node_id",), "edge": ("source", "target")}
    keys: dict[tuple[str, str], str] = {}
    for kind, things in (("node", nodes), ("edge", links)):
        for name in dict.fromkeys(name for one in things for name in one):
            found = next((t for one in things if (t := _TYPES.get(type(one.get(name))))), None)
            if found is not None and name not in own[kind]:
                keys[kind, name] = f"{kind}_{name}"
                about = {"for": kind, "attr.name": name, "attr.type": found}
                SubElement(root, "key", {"id": keys[kind, name], **about})
    graph = SubElement(root, "graph", edgedefault="directed")
    for kind, things in (("node", nodes), ("edge", links)):
        for one in things:
            names = {"node_id": "id"}
            place = {str(names.get(name, name)): str(one[name]) for name in own[kind]}
            element = SubElement(graph, kind, place)
            for name, value in one.items():
                if (kind, name) in keys and type(value) in _TYPES:
                    data = SubElement(element, "data", key=keys[kind, name])
                    data.text = str(value).lower() if isinstance(value, bool) else str(value)
    indent(root)
    return tostring(root, encoding="utf-8", xml_declaration=True)
