"""Names and types that several packages share.

Axis names in shape strings, everywhere:

    batch   vectors handed to the SAE at once        d_in    width of an activation vector
    rows    vectors of a stored split                d_sae   number of latents
    ctx     tokens in a context                      k       latents that may fire per vector
"""

from typing import Literal, NamedTuple, get_args

from sae.errors import SiteError

Split = Literal["train", "val", "test"]
Site = Literal["resid", "mlp_in", "mlp", "mlp_out", "attn_out", "attn_z"]
SITES: tuple[str, ...] = get_args(Site)
SPLITS: tuple[str, ...] = get_args(Split)


class Point(NamedTuple):
    """A place in the LM where activations are read: a site of a layer. Layers count from 0.

    Example:
        >>> str(Point("resid", 4)), Point.parse("mlp_out.2")
        ('resid.4', Point(site='mlp_out', layer=2))
    """

    site: str
    layer: int

    def __str__(self) -> str:
        return f"{self.site}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> "Point":
        """Read `"site.layer"`.

        Raises:
            SiteError: If the text has another form or names no known site.
        """
        site, _, layer = text.rpartition(".")
        if site not in SITES or not layer.isdigit():
            raise SiteError(
                f"{text!r} is not a point of an LM. Write site.layer, for example resid.4; "
                f"sites: {', '.join(SITES)}."
            )
        return cls(site, int(layer))


class Ends(NamedTuple):
    """Points where an SAE reads and where it writes.

    An SAE reads and writes one point; a transcoder reads one point and writes another; a
    crosscoder reads and writes several at once. A vector concatenates the activations of several
    points.

    Example:
        >>> str(Ends.at(Point("resid", 4))), Ends.parse("mlp_in.4->mlp_out.4").pair
        ('resid.4', True)
        >>> str(Ends.at(Point("resid", 2), Point("resid", 4), Point("mlp_out", 4)))
        'resid.2+4+mlp_out.4'
    """

    reads: tuple[Point, ...]
    writes: tuple[Point, ...]

    @classmethod
    def at(cls, *points: Point) -> "Ends":
        """Read and write the same points."""
        return cls(points, points)

    @property
    def pair(self) -> bool:
        """True if what is written is something else than what is read."""
        return self.reads != self.writes

    @property
    def points(self) -> tuple[Point, ...]:
        """The points whose activations make up a vector, in that order."""
        return (*self.reads, *self.writes) if self.pair else self.reads

    @property
    def point(self) -> Point | None:
        """The point, where there is only one."""
        return self.reads[0] if len(self.points) == 1 else None

    def __str__(self) -> str:
        sides = (self.reads, self.writes) if self.pair else (self.reads,)
        return "->".join(map(_joined, sides))

    @classmethod
    def parse(cls, text: str) -> "Ends":
        """Read what `str` says.

        Raises:
            SiteError: If the text has another form or names no known site.
        """
        reads, arrow, writes = text.partition("->")
        ends = cls.at(*_split(reads))
        return cls(ends.reads, _split(writes)) if arrow else ends


def _joined(points: tuple[Point, ...]) -> str:
    """`resid.2+4`: the site is said where it is another than before."""
    sites = [None, *(point.site for point in points)]
    words = [
        str(p.layer) if p.site == before else str(p)
        for p, before in zip(points, sites, strict=False)
    ]
    return "+".join(words)


def _split(text: str) -> tuple[Point, ...]:
    points: list[Point] = []
    for word in text.split("+"):
        full = f"{points[-1].site}.{word}" if points and word.isdigit() else word
        points.append(Point.parse(full))
    return tuple(points)
