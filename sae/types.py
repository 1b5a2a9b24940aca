"""Words that several rooms share.

Axis names in shape strings, everywhere:

    batch   vectors handed to the SAE at once        d_in    width of an activation vector
    rows    vectors of a stored split                d_sae   number of latents
    ctx     tokens in a context                      k       latents that may fire per vector
"""

from typing import Literal, NamedTuple, get_args

from sae.errors import SiteError

Split = Literal["train", "val", "test"]
Site = Literal["resid", "mlp", "mlp_out", "attn_out", "attn_z"]
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
                f"{text!r} is no point. Write site.layer, for example resid.4; "
                f"sites: {', '.join(SITES)}."
            )
        return cls(site, int(layer))
