"""Size of an LM, from its configuration alone: no weights are read or made."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sae.language import sites
from sae.language.quiet import quiet
from sae.types import Point


@dataclass(frozen=True)
class LMSizes:
    """Widths and counts.

    Attributes:
        d_model: Width of the residual stream.
        d_attn: Width of the concatenated heads (site `attn_z`).
        d_mlp: Number of hidden neurons of a block (site `mlp`).
        num_layers: Number of blocks.
        vocab_size: Number of logits.
        parameters: All of them, embeddings included.
        model_type: Its family.

    Of a mixture of experts, `d_mlp` is 0.
    """

    d_model: int
    d_attn: int
    d_mlp: int
    num_layers: int
    vocab_size: int
    parameters: int
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
    from_heads = _entries(block.get_submodule(family.attn_proj))
    from_mlp = _entries(block.get_submodule(modules["mlp"])) if "mlp" in modules else 0
    return LMSizes(
        d_model=config.hidden_size,
        d_attn=from_heads // config.hidden_size,
        d_mlp=from_mlp // config.hidden_size,
        num_layers=len(blocks),
        vocab_size=config.vocab_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        model_type=config.model_type,
    )


def _entries(module: nn.Module) -> int:
    """Entries of all weight matrices in a module."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)
