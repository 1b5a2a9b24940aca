"""Places in an LM by other libraries' names, and what an SAE knows of its own."""

import re
from dataclasses import dataclass
from typing import Any

from sae.dictionaries.sae import SAE
from sae.types import Ends, Point

_HOOKS = {
    "resid": "hook_resid_post", "mlp": "mlp.hook_post", "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out", "attn_z": "attn.hook_z",
}  # fmt: skip
"""TransformerLens' names, after `blocks.<layer>.`."""
_MODULES = {"": "resid", ".mlp": "mlp_out", ".attention": "attn_out", ".attn": "attn_out",
            ".self_attn": "attn_out"}  # fmt: skip
"""What a transformers module puts out, by its name after `layers.<layer>`."""


@dataclass(frozen=True)
class Place:
    """What is known of the activations behind an SAE; None where it is not.

    Attributes:
        lm: The LM's name, as its library says it.
        point: Site and layer.
        ctx: Tokens in a context.
        corpus: The text's name.
    """

    lm: str | None = None
    point: Point | None = None
    ctx: int | None = None
    corpus: str | None = None

    @classmethod
    def said(
        cls, lm: object = None, point: Point | None = None, ctx: object = None,
        corpus: object = None,
    ) -> "Place":  # fmt: skip
        """From what a file says; what is no name, or no number of tokens, is left out."""
        return cls(
            lm if isinstance(lm, str) else None,
            point,
            ctx if isinstance(ctx, int) and ctx > 1 else None,
            corpus if isinstance(corpus, str) else None,
        )


def described(format: str, place: Place, **more: object) -> dict[str, Any]:
    """`metadata["origin"]` of an SAE from another library's file."""
    point = str(place.point) if place.point else None
    known: dict[str, Any] = {
        "lm": place.lm,
        "point": point,
        "ctx": place.ctx,
        "corpus": place.corpus,
        **more,
    }
    return {"format": format} | {key: value for key, value in known.items() if value is not None}


def place_of(sae: SAE) -> Place:
    """What the metadata of an SAE say, whoever trained it."""
    made_of: Any = sae.metadata.get("activations")
    if isinstance(made_of, dict) and made_of.get("kind") == "lm":
        lm, corpus = made_of["lm"], made_of["corpus"]
        return Place(
            lm.get("repo") or lm.get("name"), Ends.parse(made_of["point"]).point, made_of["ctx"],
            corpus.get("name"),
        )  # fmt: skip
    origin: Any = sae.metadata.get("origin") or {}
    point = Point.parse(origin["point"]) if "point" in origin else None
    return Place.said(origin.get("lm"), point, origin.get("ctx"), origin.get("corpus"))


def ends_of(sae: SAE) -> tuple[Point | None, Point | None]:
    """Where a transcoder reads and where it writes; None where that is not known.

    Of one from another library's file, the first is what `place_of` says.
    """
    made_of: Any = sae.metadata.get("activations")
    if isinstance(made_of, dict) and made_of.get("kind") == "lm":
        ends = Ends.parse(made_of["point"])
        one_each = len(ends.reads) == len(ends.writes) == 1
        return (ends.reads[0], ends.writes[0]) if one_each else (None, None)
    origin: Any = sae.metadata.get("origin") or {}
    target = origin.get("target")
    return place_of(sae).point, Point.parse(target) if target else None


def hook_of(point: Point) -> str | None:
    """TransformerLens' name of a point; None where it has none (`mlp_in`: its norms are others).

    Example:
        >>> hook_of(Point("resid", 4))
        'blocks.4.hook_resid_post'
    """
    hook = _HOOKS.get(point.site)
    return None if hook is None else f"blocks.{point.layer}.{hook}"


def point_of(name: object) -> Point | None:
    """The point that a TransformerLens hook, or the output of a transformers block, is.

    Example:
        >>> str(point_of("blocks.4.hook_resid_pre")), str(point_of("gpt_neox.layers.2.mlp"))
        ('resid.3', 'mlp_out.2')
    """
    if found := re.fullmatch(r"blocks\.(\d+)\.(\S+)", str(name)):
        layer, hook = int(found[1]), found[2]
        if hook == "hook_resid_pre" and layer > 0:  # what the block before puts out
            return Point("resid", layer - 1)
        sites = {hook: site for site, hook in _HOOKS.items()}
        return Point(sites[hook], layer) if hook in sites else None
    if found := re.fullmatch(r"(?:\S+\.)?(?:layers|h)\.(\d+)(|\.\w+)", str(name)):
        site = _MODULES.get(found[2])
        return Point(site, int(found[1])) if site else None
    return None
