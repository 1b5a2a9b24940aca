"""Costs of a run, as pure functions: bytes and steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sae.activations.cache import Layout, StoreSpec
from sae.dictionaries import build_dictionary
from sae.language.sizes import LMSizes

FLOAT32 = 4
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
CONTEXT_ARRAY_ENTRIES = 2**20
"""Entries in a chunk of the arrays `tokens` and `document` of a store."""


def parameters(
    config: Mapping[str, Any], *, d_in: int, d_out: int | None = None, widths: Sequence[int] = ()
) -> int:
    """Trained numbers of a configured dictionary, counted on one that takes no memory.

    Args:
        config: As for `build_dictionary`.
        d_in: Width of the input.
        d_out: Width of a transcoder's target.
        widths: Widths of a crosscoder's layers.
    """
    with torch.device("meta"):
        dictionary = build_dictionary(
            config, d_in=d_in, d_out=d_out, widths=widths, mean=torch.empty(d_in + (d_out or 0))
        )
    return sum(parameter.numel() for parameter in dictionary.parameters())


def rows_of(spec: StoreSpec) -> int:
    """Vectors in a store."""
    return spec.tokens // spec.ctx * spec.rows_per_context


def train_steps(num_rows: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps of a run."""
    return epochs * num_rows // batch_size


def points_bytes(spec: StoreSpec, width: int) -> int:
    """Bytes on disk of the activations of one point; the last chunk is padded to full size."""
    rows = spec.contexts_per_chunk * spec.rows_per_context
    layout = Layout(rows_of(spec), width, rows, spec.dtype)
    return layout.num_chunks * layout.chunk_bytes


def contexts_bytes(spec: StoreSpec) -> int:
    """Bytes on disk of a store's tokens and document numbers."""
    contexts = spec.tokens // spec.ctx
    rows = min(contexts, max(1, CONTEXT_ARRAY_ENTRIES // spec.ctx))
    layout = Layout(contexts, spec.ctx, rows, "int32")
    return 2 * layout.num_chunks * layout.chunk_bytes


def harvest_memory(
    sizes: LMSizes, dtype: str, spec: StoreSpec, widths: list[int], batch_contexts: int
) -> dict[str, int]:
    """Bytes held while harvesting.

    A block holds its input and output, the normed input, queries, keys, values and heads, and
    gate, up and their product. The rows of whole chunks of all points wait to be written: as the
    pieces that came and as the array made of them.
    """
    tokens = batch_contexts * spec.ctx
    inside = tokens * (4 * sizes.d_model + 4 * sizes.d_attn + 3 * sizes.d_mlp) * ITEMSIZE[dtype]
    waiting = max(batch_contexts, spec.contexts_per_chunk) * spec.ctx * sum(widths)
    return {
        "LM": sizes.parameters * ITEMSIZE[dtype],
        "harvest batch": inside + 2 * waiting * ITEMSIZE[spec.dtype],
    }


def logits_memory(vocab_size: int, dtype: str, ctx: int, batch_contexts: int) -> int:
    """Bytes of a batch of next-token metrics: logits under four conditions, a context in float32.

    Of that context, seven float32 arrays live at once (two of logits, their log-probabilities,
    their products).
    """
    logits = batch_contexts * ctx * vocab_size * ITEMSIZE[dtype]
    return 4 * logits + 7 * ctx * vocab_size * FLOAT32


def dictionary_memory(num_parameters: int) -> int:
    """Bytes of weights, gradients and both Adam moments, in float32."""
    return 4 * num_parameters * FLOAT32


def step_memory(
    batch: int, d_in: int, d_sae: int, num_parameters: int, itemsize: int, k: int | None = None
) -> int:
    """Bytes of a step: codes, their gradients and masks, and normalised weights twice.

    With `k` the code is sparse: pre-activations, and for each pair its place, value and gradient.
    """
    codes = batch * d_sae * (4 * itemsize + FLOAT32)
    if k is not None:
        codes = batch * d_sae * itemsize + batch * k * 8 * FLOAT32
    return codes + 4 * batch * d_in * FLOAT32 + 2 * num_parameters * FLOAT32


def codes_memory(rows: int, d_in: int, d_sae: int) -> int:
    """Bytes of rows encoded at once without gradients: before and after the activation, masks."""
    return rows * (3 * d_sae + 4 * d_in) * FLOAT32


def resampling_memory(sample: int, d_in: int, d_sae: int, at_once: int) -> int:
    """Bytes of resampling: the sample, as read, scaled and drawn, and codes of a part of it."""
    return 2 * sample * d_in * FLOAT32 + codes_memory(min(at_once, sample), d_in, d_sae)


def buffer_memory(num_rows: int, buffer_rows: int, chunk_rows: int, width: int, dtype: str) -> int:
    """Bytes of the two shuffled blocks, with the order of one."""
    block = max(1, min(buffer_rows, num_rows) // chunk_rows) * chunk_rows
    blocks = 2 if num_rows > block else 1
    return blocks * block * width * ITEMSIZE[dtype] + block * 8


def largest(items: Mapping[str, int]) -> dict[str, int]:
    """The largest of several that do not happen at once."""
    name = max(items, key=lambda key: items[key])
    return {name: items[name]}
