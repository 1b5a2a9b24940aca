"""Sites where activations are read in each LM family.

A new family is one `Family` entry in `FAMILIES` and one of tiny sizes in `tiny.TINY`: the contract
tests then run on it. `names.py` says what other libraries call these sites.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from torch import nn

from sae.errors import SiteError
from sae.types import SITES, Point


class Family(NamedTuple):
    """Module paths of one transformers `model_type`.

    Left out, the input of the MLP is that of the module around `mlp_proj`, and what is added to the
    residual stream is what the two projections, and the modules around them, put out.

    Args:
        blocks: List of the blocks, in the model.
        final_norm: Norm between the last block and the unembedding, in the model.
        mlp_proj: Projection of the MLP back to the residual stream, in a block; None in a mixture
            of experts, where no one vector goes into it.
        attn_proj: Projection of the attention back to the residual stream, in a block.
        mlp_in: Module whose input is that of the whole MLP, in a block.
        mlp_out: Module whose output is added to the residual stream, in a block: a norm where one
            stands between the MLP and the stream.
        attn_out: Module whose output is added to the residual stream, for the attention.
        factor: Setting of the LM that multiplies both outputs before they are added.
        only: Settings of the LM with the one value for which the above holds.
    """

    blocks: str
    final_norm: str
    mlp_proj: str | None
    attn_proj: str
    mlp_in: str | None = None
    mlp_out: str | None = None
    attn_out: str | None = None
    factor: str | None = None
    only: Mapping[str, object] = {}

    @property
    def modules(self) -> dict[str, str]:
        """By site, the path in a block of the module whose input or output it is."""
        mlp = self.mlp_in or (self.mlp_proj or "").rpartition(".")[0]
        paths = {
            "resid": "",
            "mlp_in": mlp,
            "mlp": self.mlp_proj,
            "mlp_out": self.mlp_out or self.mlp_proj,
            "attn_out": self.attn_out or self.attn_proj,
            "attn_z": self.attn_proj,
        }
        return {site: path for site, path in paths.items() if path is not None}

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that LMs of this family have."""
        return tuple(self.modules)


_LLAMA = Family("model.layers", "model.norm", "mlp.down_proj", "self_attn.o_proj")
_GPT2 = Family("transformer.h", "transformer.ln_f", "mlp.c_proj", "attn.c_proj")
_POST_NORMS = {"mlp_out": "post_feedforward_layernorm", "attn_out": "post_attention_layernorm"}
_EXPERTS = {"mlp_proj": None, "mlp_in": "mlp", "mlp_out": "mlp"}

FAMILIES = {
    "gpt_neox": Family(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "mlp.dense_4h_to_h", "attention.dense"
    ),
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "ministral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "smollm3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA._replace(**_POST_NORMS),
    "gemma3_text": _LLAMA._replace(**_POST_NORMS),
    "olmo": _LLAMA,
    "olmo2": _LLAMA._replace(**_POST_NORMS),
    "olmo3": _LLAMA._replace(**_POST_NORMS),
    "exaone4": _LLAMA._replace(**_POST_NORMS),
    "glm4": _LLAMA._replace(mlp_out="post_mlp_layernorm", attn_out="post_self_attn_layernorm"),
    "phi3": _LLAMA,
    "phi": Family("model.layers", "model.final_layernorm", "mlp.fc2", "self_attn.dense"),
    "granite": _LLAMA._replace(factor="residual_multiplier"),
    "stablelm": _LLAMA,
    "cohere": _LLAMA,
    "cohere2": _LLAMA,
    "seed_oss": _LLAMA,
    "arcee": _LLAMA,
    "nemotron": _LLAMA,
    "starcoder2": _LLAMA._replace(mlp_proj="mlp.c_proj"),
    "gpt_bigcode": _GPT2,
    "gpt_neo": _GPT2._replace(attn_proj="attn.attention.out_proj"),
    "gptj": _GPT2._replace(mlp_proj="mlp.fc_out", attn_proj="attn.out_proj"),
    "codegen": _GPT2._replace(mlp_proj="mlp.fc_out", attn_proj="attn.out_proj"),
    "falcon": _GPT2._replace(mlp_proj="mlp.dense_4h_to_h", attn_proj="self_attention.dense"),
    # Both have the residual stream added inside the modules around the projections.
    "bloom": Family(
        "transformer.h", "transformer.ln_f", "mlp.dense_4h_to_h", "self_attention.dense",
        mlp_out="mlp.dense_4h_to_h", attn_out="self_attention.dense",
        only={"apply_residual_connection_post_layernorm": False, "slow_but_exact": False},
    ),
    "mpt": Family(
        "transformer.blocks", "transformer.norm_f", "ffn.down_proj", "attn.out_proj",
        mlp_out="ffn.down_proj",
    ),
    # Its blocks have no module around the MLP, and those of opt-350m norm the whole stream.
    "opt": Family(
        "model.decoder.layers", "model.decoder.final_layer_norm", "fc2", "self_attn.out_proj",
        mlp_in="fc1", only={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    ),
    "mixtral": _LLAMA._replace(**_EXPERTS),
    "olmoe": _LLAMA._replace(**_EXPERTS),
    "qwen3_moe": _LLAMA._replace(**_EXPERTS),
}  # fmt: skip

# `mlp_in` is the input of the whole MLP (the normed residual stream, what transcoders read), `mlp`
# that of the projection down: act(W x) in GPT-2 and GPT-NeoX, act(gate) * up in
# LLaMA; `attn_z` the concatenated heads. The outputs are what is added to the residual stream.
_INPUTS = ("mlp_in", "mlp", "attn_z")


def family_of(model: Any) -> Family:
    """The family of a transformers model, or of its configuration.

    Raises:
        SiteError: If its `model_type` has no entry, or its settings move the sites elsewhere.
    """
    config: Any = getattr(model, "config", model)
    model_type = getattr(config, "model_type", type(model).__name__)
    if model_type not in FAMILIES and (text := getattr(config, "text_config", None)) is not None:
        raise SiteError(
            f"LMs of type {model_type!r} read images or sound as well as text, and their text part "
            f"({getattr(text, 'model_type', 'text')}) is not supported. Use a text-only LM; in "
            "Gemma 3 these are gemma-3-270m and gemma-3-1b."
        )
    if model_type not in FAMILIES:
        raise SiteError(
            f"LMs of type {model_type!r} are not known; known: {', '.join(FAMILIES)}. "
            "A new one is a Family entry in sae/language/sites.py."
        )
    family = FAMILIES[model_type]
    for setting, value in family.only.items():
        given = getattr(config, setting, value)
        if given != value:
            raise SiteError(
                f"LMs of type {model_type!r} are supported only with {setting}={value}; with "
                f"{setting}={given} a residual stream is not the sum of what blocks add to it. Use "
                "another LM."
            )
    return family


def factor_of(model: nn.Module) -> float:
    """The number by which blocks multiply what they add to the residual stream."""
    setting = family_of(model).factor
    return 1.0 if setting is None else float(getattr(model.config, setting))


def check(point: Point, num_layers: int, sites: Collection[str] = SITES) -> None:
    """Raise SiteError unless an LM of so many layers, with these sites, has the point."""
    if point.site not in SITES:
        raise SiteError(f"site={point.site} is not known. Choose one of {', '.join(sites)}.")
    if point.site not in sites:
        raise SiteError(
            f"site={point.site} does not exist: the MLPs of this LM are mixtures of experts, "
            f"and no one vector is the input of their projections. Choose one of "
            f"{', '.join(sites)}."
        )
    if not 0 <= point.layer < num_layers:
        raise SiteError(
            f"layer={point.layer} does not exist: the LM has {num_layers} layers, "
            f"0 to {num_layers - 1}."
        )


def is_input(point: Point) -> bool:
    """True if the activation is what goes into `module_at(…)`, not what comes out of it."""
    return point.site in _INPUTS


def is_added(point: Point) -> bool:
    """True if the activation is added to the residual stream."""
    return point.site in ("mlp_out", "attn_out")


def module_at(model: nn.Module, point: Point) -> nn.Module:
    """The module whose input or output the point is."""
    family = family_of(model)
    block = model.get_submodule(f"{family.blocks}.{point.layer}")
    return block.get_submodule(family.modules[point.site])


def blocks_below(model: nn.Module, points: Collection[Point]) -> list[nn.Module]:
    """The blocks whose computation no replacement at any of these points can reach.

    A block whose output is replaced is one of them. Without points there are none.
    """
    blocks = list(model.get_submodule(family_of(model).blocks).children())
    below = (point.layer + (point.site == "resid") for point in points)
    return blocks[: min(below, default=0)]


def output_module(model: Any, point: Point) -> str | None:
    """Path, from the base model on, of the module whose output the point is.

    None where the activation is an input, or the module's output is multiplied afterwards.
    """
    family = family_of(model)
    if is_input(point) or (is_added(point) and family.factor is not None):
        return None
    path = ".".join(filter(None, [family.blocks, str(point.layer), family.modules[point.site]]))
    return path.removeprefix(f"{model.base_model_prefix}.")
