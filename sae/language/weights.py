"""Loading trained weights, all of them: transformers draws what is missing at random."""

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from sae.errors import SourceError
from sae.language import sites
from sae.language.text import Tokenizer

MODEL_OPTIONS = {"trust_remote_code": False}
"""No question whether the hub's code may run. Attention is the library's choice: its fused kernel
where the family's attention is one that the kernel can compute (Gemma 2's soft-caps are not)."""
LOAD_OPTIONS = {**MODEL_OPTIONS, "use_safetensors": True}
"""Weights are read from safetensors alone: a .bin is a pickle."""

_BUFFERS = re.compile(
    r"(masked_bias|attn\.bias|attention\.bias|causal_mask|inv_freq|position_ids|decoder\.version)$"
)
"""Masks and positions in old checkpoints; the modules compute it themselves."""
_SHOWN = 3


def trained_model(where: Any, **options: Any) -> nn.Module:
    """The causal LM of a folder or of the hub, each of whose weights its checkpoint holds.

    Args:
        where: Folder or hub id, as `from_pretrained` takes it.
        options: Its further options.

    Raises:
        SourceError: If weights are quantised, are missing, or belong to blocks or modules that
            the configuration does not have.
        SiteError: If its family is not known.
    """
    from transformers import AutoModelForCausalLM

    chosen = {name: options[name] for name in ("revision", "local_files_only") if name in options}
    config = config_of(where, **chosen)
    _refuse_quantised(config, where)
    sites.family_of(config)  # before minutes of loading
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        where,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **LOAD_OPTIONS,
        **options,
    )
    model, found = loaded
    refuse_other_keys(model, found, where)
    return model


def config_of(where: Any, **options: Any) -> Any:
    """The transformers configuration of a folder or of the hub."""
    from transformers import AutoConfig

    return as_data(AutoConfig.from_pretrained(where, trust_remote_code=False, **options))


def as_data(config: Any) -> Any:
    """A transformers configuration that names no code.

    `_attn_implementation` or `_experts_implementation` in somebody's config.json may name kernels
    of the hub. None leaves the choice to transformers.
    """
    config = copy.deepcopy(config)  # a model may hold it
    config._attn_implementation = config._experts_implementation = None
    return config


def refuse_other_keys(model: nn.Module, found: Mapping[str, Any], where: Any) -> None:
    """Compare the keys of a checkpoint with the weights of the model that was made of it.

    Args:
        model: The model.
        found: `missing_keys`, `mismatched_keys` and `unexpected_keys`, as transformers tells them.
            Tied weights are not missing. Unexpected are also heads for other tasks, which change
            nothing.
        where: The checkpoint, for the message.

    Raises:
        SourceError: If a weight is missing or of another shape, or one would be left out, of
            the LM's modules or of the unembedding.
    """
    for key, theirs, ours in sorted(found["mismatched_keys"]):
        raise SourceError(
            f"The checkpoint of the LM in {where} holds {key} of shape {list(theirs)}; its "
            f"config.json asks for {list(ours)}. Use the config.json that belongs to it."
        )
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        instead = f" It holds {_some(unexpected)} instead." if unexpected else ""
        raise SourceError(
            f"The checkpoint of the LM in {where} lacks {_some(missing)}: transformers would draw "
            f"these weights at random.{instead} Save the whole model with save_pretrained; of a "
            "compiled or wrapped one the model inside (model._orig_mod, model.module)."
        )
    top, _, blocks = sites.family_of(model).blocks.partition(".")
    heads = [name for name, m in model.named_modules() if m is _unembedding(model)]
    own = re.compile("|".join([rf"{top}\.", rf"{blocks}\.\d+\.", *(rf"{h}\." for h in heads)]))
    if dropped := [k for k in unexpected if own.match(k) and not _BUFFERS.search(k)]:
        raise SourceError(
            f"The checkpoint of the LM in {where} holds {_some(dropped)}, for which its "
            "config.json has no place: they would be left out. Use the config.json that belongs to "
            "it."
        )


def _unembedding(model: Any) -> nn.Module | None:
    return model.get_output_embeddings()


def check_embedded(tokens: Tensor, model: Any, tokenizer: Tokenizer, name: str) -> None:
    """Refuse tokens that the LM does not embed; some tokenizers know more of them.

    Raises:
        SourceError: With the token's number and text.
    """
    if not tokens.numel() or not hasattr(model, "get_input_embeddings"):
        return
    embedded, highest = model.get_input_embeddings().num_embeddings, int(tokens.max())
    if highest >= embedded:
        spelt = next((repr(s) for s, i in tokenizer.get_vocab().items() if i == highest), "")
        raise SourceError(
            f"The tokenizer of {name} makes token {highest} {spelt} of this text, but the LM "
            f"embeds tokens 0 to {embedded - 1} only. Use the tokenizer that belongs to the LM, or "
            "resize its embeddings (resize_token_embeddings) and train them."
        )


def _refuse_quantised(config: Any, where: Any) -> None:
    quantisation = getattr(config, "quantization_config", None)
    if quantisation is None:
        return
    settings = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    raise SourceError(
        f"The LM in {where} has quantised weights ({settings.get('quant_method')}), which are not "
        "read. Use the LM as it was before, or dequantise it and save it with save_pretrained."
    )


def _some(keys: Collection[str]) -> str:
    shown = ", ".join(list(keys)[:_SHOWN])
    return shown if len(keys) <= _SHOWN else f"{shown} and {len(keys) - _SHOWN} more weights"
