"""Places in an LM by other libraries' names, and what an SAE knows of its own."""

from dataclasses import dataclass
from typing import Any

from sae.dictionaries.sae import SAE
from sae.language.names import NAMES, read_name
from sae.types import Ends, Point


@dataclass(frozen=True)
class Place:
    """Known facts of the activations behind an SAE; None where unknown.

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
        """Build a place from the entries of a file; entries of a wrong type become None."""
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
    """Facts in the metadata of an SAE, whoever trained it."""
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
    """Points where a transcoder reads and where it writes; None where that is not known.

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


def in_lm(sae: SAE, model_type: str | None, *, written: bool = False) -> tuple[Point | None, str]:
    """Point in an LM of this family where an SAE from another library's file reads.

    Families that add other things to the residual stream have modules of the same name, so that
    some places are known only once the family is.

    Args:
        sae: The SAE.
        model_type: The LM's, None where it is not known.
        written: True for the point where a transcoder writes.

    Returns:
        The point and "", or None and the reason, "" where the file names no place.
    """
    origin: Any = sae.metadata.get("origin") or {}
    if (point := ends_of(sae)[written]) is not None:
        return point, ""
    hook = origin.get("hook_out" if written else "hook")
    if not isinstance(hook, str):
        return None, ""
    if origin.get("head") is not None:
        return None, f"{hook} of head {origin['head']} is a part of a site"
    point, reason = read_name(hook, model_type)
    return point, "" if point else f"{hook} is not a site: {reason}"


def hook_of(point: Point) -> str:
    """TransformerLens' name of a point.

    Example:
        >>> hook_of(Point("resid", 4)), hook_of(Point("mlp_in", 4))
        ('blocks.4.hook_resid_post', 'blocks.4.mlp.hook_in')
    """
    return f"blocks.{point.layer}.{NAMES[point.site].transformer_lens}"


def point_of(name: object) -> Point | None:
    """The point that a TransformerLens hook, or a module of transformers, is in every family.

    Example:
        >>> str(point_of("blocks.4.hook_resid_pre")), str(point_of("gpt_neox.layers.2.mlp"))
        ('resid.3', 'mlp_out.2')
    """
    return read_name(name)[0] if isinstance(name, str) else None
