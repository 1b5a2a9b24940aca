"""Names of the sites in other libraries, and the point that a name of theirs is.

`NAMES` is the table; a transformers module is named by its path, from `sites.FAMILIES`.
"""

import re
from typing import NamedTuple

from sae.language.sites import FAMILIES, Family
from sae.types import Point


class Names(NamedTuple):
    """Names of one site.

    Args:
        transformer_lens: After `blocks.<layer>.`, in its TransformerBridge and HookedTransformer.
        interp_engine: Name in `cache[name, layer]`.
        nnterp: Accessor of nnsight's standardised transformers, `model.<accessor>[layer]`; None
            where it has none that means the same in every family.
    """

    transformer_lens: str
    interp_engine: str
    nnterp: str | None


NAMES = {
    "resid": Names("hook_resid_post", "resid_post", "layers_output"),
    "mlp_in": Names("mlp.hook_in", "mlp_in", "mlps_input"),
    "mlp": Names("mlp.hook_post", "mlp_act", None),
    "mlp_out": Names("hook_mlp_out", "mlp_out_post", None),
    "attn_out": Names("hook_attn_out", "attn_out_post", None),
    "attn_z": Names("attn.hook_z", "z", None),
}

_BLOCK = re.compile(r"((?:\w+\.)*(?:layers|h|blocks))\.(\d+)((?:\.\w+)*?)(?:\.(input|output))?")
_EMBEDDING = "it is the embedding, which is not a site; resid starts with the output of layer 0"
_RAW = (
    "in that family the module's output is not what is added to the residual stream (a norm, a "
    "factor or the stream itself comes after it)"
)


def nnsight_name(family: Family, point: Point) -> str:
    """A point as nnsight spells it, on the LM that transformers loads.

    Example:
        >>> nnsight_name(FAMILIES["gemma2"], Point("mlp_out", 4))
        'model.layers[4].post_feedforward_layernorm.output'
        >>> nnsight_name(FAMILIES["gpt2"], Point("attn_z", 0))
        'transformer.h[0].attn.c_proj.input'
    """
    end = "input" if point.site in ("mlp_in", "mlp", "attn_z") else "output"
    path = [f"{family.blocks}[{point.layer}]", family.modules[point.site], end]
    return ".".join(filter(None, path))


def read_name(name: str, model_type: str | None = None) -> tuple[Point | None, str]:
    """The point that a hook of TransformerLens, or a module of transformers, is.

    Args:
        name: For example `blocks.4.hook_resid_post`, `model.layers.4` or
            `model.layers.4.mlp.down_proj.input`; a module without `input` is its output.
        model_type: Family of the LM, where it is known. Without it, a module counts only if it is
            the same point in every family that has such a module.

    Returns:
        The point and "", or None and the reason.

    Example:
        >>> str(read_name("blocks.4.hook_resid_pre")[0]), str(read_name("model.layers.4")[0])
        ('resid.3', 'resid.4')
        >>> read_name("model.layers.4.mlp")[0], str(read_name("model.layers.4.mlp", "llama")[0])
        (None, 'mlp_out.4')
    """
    if hook := re.fullmatch(r"blocks\.(\d+)\.((?:\w+\.)*hook_\w+)", name):
        return _of_hook(int(hook[1]), hook[2])
    if not (module := _BLOCK.fullmatch(name)):
        return None, "it is neither a hook of TransformerLens nor a module of a block"
    families = FAMILIES if model_type is None else {model_type: FAMILIES[model_type]}
    found: dict[Point | str, list[str]] = {}
    for word, family in families.items():
        if (read := _of_module(module, family)) is not None:
            found.setdefault(read, []).append(word)
    if len(found) == 1:
        (read,) = found
        return (read, "") if isinstance(read, Point) else (None, read)
    if not found:
        return None, "no family that is known has such a module"
    said = "; ".join(f"{point}: {', '.join(words)}" for point, words in found.items())
    return None, f"it depends on the family of the LM ({said})"


def _of_hook(layer: int, hook: str) -> tuple[Point | None, str]:
    if hook in ("hook_resid_pre", "hook_in"):  # what the block before puts out
        return (Point("resid", layer - 1), "") if layer else (None, _EMBEDDING)
    sites = {names.transformer_lens: site for site, names in NAMES.items()}
    sites["hook_out"] = "resid"
    if hook in sites:
        return Point(sites[hook], layer), ""
    return None, f"of TransformerLens' hooks, those that are sites here are {', '.join(sites)}"


def _of_module(module: re.Match[str], family: Family) -> Point | str | None:
    """The point, why it is none, or None if the family has no such module."""
    blocks, layer, path = module[1], int(module[2]), module[3].removeprefix(".")
    ends = module[4] or "output"
    if not f".{family.blocks}".endswith(f".{blocks}"):
        return None
    if not path:
        layer -= ends == "input"
        return _EMBEDDING if layer < 0 else Point("resid", layer)
    own = {f"{p}.{end}": site for site, p, end in _ends(family)}
    if site := own.get(f"{path}.{ends}"):
        return Point(site, layer)
    known = {above for p in family.modules.values() for above in (p, *_above(p))}
    return _RAW if path in known else None


def _ends(family: Family) -> list[tuple[str, str, str]]:
    """Site, module and `input` or `output`, of all modules where a site can be read."""
    modules = family.modules
    ends = [(site, modules[site], "input") for site in ("mlp_in", "mlp", "attn_z")
            if site in modules]  # fmt: skip
    if family.factor is not None:  # the modules' own outputs are not multiplied yet
        return ends
    for site, given in (("mlp_out", family.mlp_out), ("attn_out", family.attn_out)):
        around = _above(modules[site]) if given is None else []
        ends += [(site, path, "output") for path in (modules[site], *around)]
    return ends


def _above(path: str) -> list[str]:
    """The modules around one, within its block."""
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
