"""Place of an SAE from another library: its files do not say enough, so the user must."""

from collections.abc import Mapping
from typing import Any

from sae.activations.settings import LMSettings
from sae.artifacts.places import in_lm, place_of
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.language import LMSource, corpus_from_config
from sae.types import Ends, Point


def is_placed(sae: SAE) -> bool:
    """True if the SAE's own metadata say which activations it was trained on."""
    return "activations" in sae.metadata


def put_in_place(
    sae: SAE,
    *,
    lm: Mapping[str, Any] | None,
    corpus: Mapping[str, Any],
    layer: int | None,
    site: str | None,
    target: str | None,
    ctx: int | None,
) -> None:
    """Enter into the metadata of an SAE the activations that it is to be measured on.

    What its files say of the place and ctx is used where the user says nothing. All of the text
    counts as test text: nobody here trained on it.

    Args:
        sae: An SAE that is not placed; its metadata are changed.
        lm: Configuration of the LM (`LMSource.from_config`).
        corpus: Configuration of the text (`corpus_from_config`).
        layer: Layer of the LM, from 0.
        site: One of `sae.types.SITES`: the site that the SAE reads.
        target: One of `sae.types.SITES`: the site that a transcoder writes, in the same layer.
        ctx: Tokens in a context.

    Raises:
        ConfigError: If something is neither given nor known, or does not fit the LM.
    """
    place = place_of(sae)
    source = None if lm is None else LMSource.from_config(lm)
    sizes = None if source is None else source.sizes()
    model_type = sizes.model_type if sizes else None
    known, reason = in_lm(sae, model_type)
    layer = layer if layer is not None else known.layer if known else None
    site = site or (known.site if known else None)
    transcodes = sae.config.d_out is not None
    written = in_lm(sae, model_type, written=True)[0] if transcodes else None
    if layer is None and written is not None:
        layer = written.layer
    if target is None and written is not None:
        target = written.site
    words: dict[str, object] = {"lm": lm, "layer": layer, "site": site}
    if transcodes:
        words["target"] = target
    elif target is not None:
        raise ConfigError(
            f"target={target} has no effect: this SAE reconstructs its own input. Drop it."
        )
    if missing := [f"{word}=…" for word, value in words.items() if value is None]:
        said = [f"the LM {place.lm}"] if place.lm else []
        said += [f"the place {known}"] if known else []
        said += [reason] if reason else []
        hint = f" They name {' and '.join(said)}." if said else ""
        raise ConfigError(
            "The files of this SAE do not say which activations it was trained on. Give "
            f"{', '.join(missing)}{hint} Example: lm=smollm2-135m layer=4 site=resid; corpus=… and "
            "ctx=… are optional."
        )
    assert source is not None
    assert layer is not None
    assert site is not None
    ends = Ends.at(Point(site, layer))
    if target is not None:
        ends = Ends(ends.reads, (Point(target, layer),))
        if not ends.pair:
            raise ConfigError(f"target={target} is what the transcoder reads. Give the other site.")
    if sizes is not None:
        for point in ends.points:
            sizes.check(point)
        _check_width(sae, sizes.width(ends.reads[0]), f"{ends.reads[0]} of lm={source.name}")
        if sae.d_out != sizes.width(ends.writes[0]):
            raise ConfigError(
                f"This transcoder gives vectors of width {sae.d_out}; {ends.writes[0]} of "
                f"lm={source.name} has width {sizes.width(ends.writes[0])}. Give its target."
            )
    settings = LMSettings().model_dump()
    tokens = {split: settings[f"{split}_tokens"] for split in ("val", "test")}
    sae.metadata["activations"] = {
        "kind": "lm",
        "lm": source.to_config(),
        "corpus": corpus_from_config(corpus).to_config(),
        "point": str(ends),
        "ctx": ctx or place.ctx or settings["ctx"],
        "tokens": {"train": tokens["test"], **tokens},
        "val_fraction": 0.0,
        "test_fraction": 1.0,
        **{name: settings[name] for name in ("dtype", "seed", "keep_first", "stream")},
    }


def _check_width(sae: SAE, width: int, what: str) -> None:
    if sae.d_in != width:
        raise ConfigError(
            f"This SAE takes vectors of width {sae.d_in}; {what} have width {width}. Choose the "
            "lm, layer and site that it was trained on."
        )
