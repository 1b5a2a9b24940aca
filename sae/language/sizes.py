"""How large an LM is, from its configuration alone: no weights are read or made."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sae.language import sites
from sae.language.quiet import quiet
from sae.types import Point


@dataclass(frozen=True)
class LMSizes:
    """Widths and weight entries. A product with `w` entries costs 2 w operations a token.

    Attributes:
        d_model: Width of the residual stream.
        d_attn: Width of the concatenated heads (site `attn_z`).
        d_mlp: Number of hidden neurons of a block (site `mlp`).
        num_layers: Number of blocks.
        vocab_size: Number of logits.
        parameters: All of them, embeddings included.
        to_heads: Weight entries before the heads, in one block.
        from_heads: Of the attention's projection back.
        to_mlp: Before the hidden neurons.
        from_mlp: Of the MLP's projection back.
        model_type: Its family.

    Of a mixture of experts, `d_mlp` and `from_mlp` are 0, and `to_mlp` is what one token runs
    through: the router and the experts that it chooses.
    """

    d_model: int
    d_attn: int
    d_mlp: int
    num_layers: int
    vocab_size: int
    parameters: int
    to_heads: int
    from_heads: int
    to_mlp: int
    from_mlp: int
    model_type: str

    def check(self, point: Point) -> None:
        """Raise SiteError unless the LM has this point."""
        sites.check(point, self.num_layers, sites.FAMILIES[self.model_type].sites)

    def width(self, point: Point) -> int:
        """Width of the activations at a point."""
        return {"mlp": self.d_mlp, "attn_z": self.d_attn}.get(point.site, self.d_model)


def sizes_of(config: Any) -> LMSizes:
    """Sizes of the LM that a transformers configuration describes.

    Raises:
        SiteError: If its family is not known.
    """
    from transformers import AutoModelForCausalLM

    # On the meta device tensors have shapes and no memory; drawing them must not move the streams.
    with quiet(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    family = sites.family_of(model)
    blocks = list(model.get_submodule(family.blocks).children())
    block, modules = blocks[0], family.modules
    attention = _entries(block.get_submodule(family.attn_proj.rpartition(".")[0]))
    from_heads = _entries(block.get_submodule(family.attn_proj))
    from_mlp = _entries(block.get_submodule(modules["mlp"])) if "mlp" in modules else 0
    experts = _entries(block, ndim=3)
    if experts:  # each token runs through some of them
        experts = experts * config.num_experts_per_tok // config.num_experts
    return LMSizes(
        d_model=config.hidden_size,
        d_attn=from_heads // config.hidden_size,
        d_mlp=from_mlp // config.hidden_size,
        num_layers=len(blocks),
        vocab_size=config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        to_heads=attention - from_heads,
        from_heads=from_heads,
        to_mlp=_entries(block) - attention - from_mlp + experts,
        from_mlp=from_mlp,
        model_type=config.model_type,
    )


def _entries(module: nn.Module, ndim: int = 2) -> int:
    """Entries of all weight matrices in a module, or (ndim 3) of its experts' stacked ones."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim == ndim)
