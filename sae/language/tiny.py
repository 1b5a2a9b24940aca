"""Tiny untrained LMs of every family, with a tokenizer of bytes, made without the network."""

from typing import Any

import torch
from torch import nn

SEPARATOR = "<|endoftext|>"


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


def random_config(family: str, d_model: int, num_layers: int, max_ctx: int) -> Any:
    """Configuration of a tiny LM of a transformers `model_type` with four heads.

    Weights have the standard deviation 1 / sqrt(d_model): at transformers' 0.02 so narrow an LM
    hardly depends on its input.
    """
    from transformers import AutoConfig

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
    )


def random_model(family: str, seed: int, d_model: int, num_layers: int, max_ctx: int) -> nn.Module:
    """A causal LM with the configuration of `random_config` and seeded weights."""
    from transformers import AutoModelForCausalLM

    config = random_config(family, d_model, num_layers, max_ctx)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
