"""Tiny untrained LMs of every family, with a tokenizer of bytes, made without the network."""

from typing import Any

import torch
from torch import nn

SEPARATOR = "<|endoftext|>"

_HEADS = {"head_dim": 8, "num_key_value_heads": 2}
_WINDOW = {"sliding_window": 6}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

TINY: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "gpt2": {},
    "llama": {},
    "mistral": {**_HEADS, **_WINDOW},
    "ministral": {**_HEADS, **_WINDOW},
    "qwen2": {"num_key_value_heads": 2, "use_sliding_window": True, "max_window_layers": 1}
    | _WINDOW,
    "qwen3": {**_HEADS},
    "smollm3": {"num_key_value_heads": 2, "no_rope_layer_interval": 2},
    "gemma": {**_HEADS},
    "gemma2": {**_HEADS, **_WINDOW, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 2.0,
               "final_logit_softcapping": 3.0},
    "gemma3_text": {**_HEADS, **_WINDOW, "query_pre_attn_scalar": 12, "sliding_window_pattern": 2},
    "olmo": {"clip_qkv": 1.5},
    "olmo2": {"num_key_value_heads": 2},
    "olmo3": {"num_key_value_heads": 2, **_WINDOW},
    "exaone4": {"num_key_value_heads": 2, **_WINDOW, "sliding_window_pattern": 2},
    "glm4": {**_HEADS},
    "phi3": {"num_key_value_heads": 2, **_WINDOW},
    "phi": {"qk_layernorm": True},
    "granite": {"num_key_value_heads": 2, "residual_multiplier": 0.22, "embedding_multiplier": 12,
                "attention_multiplier": 0.5, "logits_scaling": 8},
    "stablelm": {"num_key_value_heads": 2},
    "cohere": {"num_key_value_heads": 2, "use_qk_norm": True},
    "cohere2": {"num_key_value_heads": 2, **_WINDOW, "sliding_window_pattern": 2},
    "seed_oss": {**_HEADS},
    "arcee": {"num_key_value_heads": 2},
    "nemotron": {"num_key_value_heads": 2},
    "starcoder2": {"num_key_value_heads": 2, **_WINDOW},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["local"], 1], [["global", "local"], 1]], "window_size": 6},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "falcon": {},
    "bloom": {},
    "mpt": {},
    "opt": {},
    "mixtral": {**_HEADS, **_EXPERTS},
    "olmoe": {**_EXPERTS},
    "qwen3_moe": {**_HEADS, **_EXPERTS, "moe_intermediate_size": 24},
}  # fmt: skip
"""By family, settings of a tiny LM beyond those that all have: whatever the family has besides the
plain sums of blocks (windows, soft-caps, factors, shared heads) is at work within a few tokens."""


def byte_tokenizer() -> Any:
    """A fast tokenizer with one token a byte (0 to 255) and the document separator (256)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR
    )


def random_config(
    family: str, d_model: int, num_layers: int, max_ctx: int, **settings: object
) -> Any:
    """Configuration of a tiny LM of a transformers `model_type` with four heads, and `settings`.

    Weights have the standard deviation 1 / sqrt(d_model): at transformers' 0.02 so narrow an LM
    hardly depends on its input.
    """
    from transformers import AutoConfig

    own = {"pad_token_id": None, "ffn_dim": 4 * d_model, "max_seq_len": max_ctx}
    return AutoConfig.for_model(
        family,
        vocab_size=257,
        hidden_size=d_model,
        intermediate_size=4 * d_model,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=max_ctx,
        initializer_range=d_model**-0.5,
        bos_token_id=256,
        eos_token_id=256,
        **own | TINY[family] | settings,
    )


def random_model(family: str, seed: int, d_model: int, num_layers: int, max_ctx: int) -> nn.Module:
    """A causal LM with the configuration of `random_config` and seeded weights."""
    from transformers import AutoModelForCausalLM

    config = random_config(family, d_model, num_layers, max_ctx)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config)
