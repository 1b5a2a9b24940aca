"""Where activations are read in each LM family.

A new family is one `Family` entry in `FAMILIES`: the contract tests then hold for it, too.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import nn

from sae.errors import SiteError
from sae.types import SITES, Point


class Family(NamedTuple):
    """Module paths of one transformers `model_type`.

    Args:
        blocks: The list of blocks, in the model.
        final_norm: The norm between the last block and the unembedding, in the model.
        mlp_proj: The MLP's projection back to the residual stream, in a block.
        attn_proj: The attention's projection back to the residual stream, in a block.
    """

    blocks: str
    final_norm: str
    mlp_proj: str
    attn_proj: str


FAMILIES = {
    "gpt_neox": Family(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "mlp.dense_4h_to_h", "attention.dense"
    ),
    "gpt2": Family("transformer.h", "transformer.ln_f", "mlp.c_proj", "attn.c_proj"),
    "llama": Family("model.layers", "model.norm", "mlp.down_proj", "self_attn.o_proj"),
}

# `mlp_in` is the input of the whole MLP (the normed residual stream, what transcoders read), `mlp`
# that of the projection down: act(W x) in GPT-2 and GPT-NeoX, act(gate) * up in
# LLaMA; `attn_z` the concatenated heads. The outputs are what is added to the residual stream.
_INPUTS = ("mlp_in", "mlp", "attn_z")


def family_of(model: nn.Module) -> Family:
    """The family of a transformers model.

    Raises:
        SiteError: If its `model_type` has no entry.
    """
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", type(model).__name__)
    if model_type not in FAMILIES:
        raise SiteError(
            f"LMs of type {model_type!r} are not known; known: {', '.join(FAMILIES)}. "
            "A new one is a Family entry in sae/language/sites.py."
        )
    return FAMILIES[model_type]


def check(point: Point, num_layers: int) -> None:
    """Raise SiteError unless the LM has this site and layer."""
    if point.site not in SITES:
        raise SiteError(f"site={point.site} is not known. Choose one of {', '.join(SITES)}.")
    if not 0 <= point.layer < num_layers:
        raise SiteError(
            f"layer={point.layer} does not exist: the LM has {num_layers} layers, "
            f"0 to {num_layers - 1}."
        )


def is_input(point: Point) -> bool:
    """Whether the activation is what goes into `module_at(…)`, not what comes out of it."""
    return point.site in _INPUTS


def module_at(model: nn.Module, point: Point) -> nn.Module:
    """The module whose input or output the point is."""
    family = family_of(model)
    block = model.get_submodule(f"{family.blocks}.{point.layer}")
    if point.site == "resid":
        return block
    if point.site == "mlp_in":
        return block.get_submodule(family.mlp_proj.rpartition(".")[0])
    return block.get_submodule(family.mlp_proj if "mlp" in point.site else family.attn_proj)


def blocks_below(model: nn.Module, points: Collection[Point]) -> list[nn.Module]:
    """The blocks whose computation no replacement at any of these points can reach.

    A block whose output is replaced is one of them. Without points there are none.
    """
    blocks = list(model.get_submodule(family_of(model).blocks).children())
    below = (point.layer + (point.site == "resid") for point in points)
    return blocks[: min(below, default=0)]
