"""Text that an LM writes."""

import inspect
from collections.abc import Collection, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.errors import ConfigError
from sae.language.hooks import CACHE_NAMES
from sae.language.pieces import token_bytes
from sae.language.text import Tokenizer, tokenise


@runtime_checkable
class Writer(Protocol):
    """The part of a `LanguageModel` that writing needs."""

    model: Any
    name: str
    max_ctx: int
    tokenizer: Tokenizer
    separator_id: int

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...


@torch.no_grad()
def generate(
    lm: Writer, tokens: Int[Tensor, "batch ctx"], *, new_tokens: int,
    temperature: float = 0.0, seed: int = 0, names: Sequence[Sequence[int]] | None = None,
    use_cache: bool = True, stop: Collection[int] = (),
) -> Int[Tensor, "batch longer"]:  # fmt: skip
    """Tokens, continued by the LM.

    Args:
        lm: The LM.
        tokens: Token ids, nothing padded.
        new_tokens: Tokens that are written, whatever they are, unless `stop` ends it before.
        temperature: 0 takes the likeliest token.
        seed: Seed of the draws.
        names: Numbers that name each text: with the seed, they decide its draws, whatever else is
            in the batch. Texts of one name get the same random numbers. None: 0, 1, … in order.
        use_cache: True if keys and values are kept; the text is the same without, and slower.
        stop: Ids that end a text; it ends once every text has written one.

    Raises:
        ConfigError: If the text grows longer than the LM allows, or the temperature is negative.
    """
    longest = tokens.shape[1] + new_tokens
    if longest > lm.max_ctx:
        raise ConfigError(
            f"{tokens.shape[1]} tokens and new_tokens={new_tokens} are {longest} together; "
            f"{lm.name} allows {lm.max_ctx}. Give a shorter text or write less."
        )
    if new_tokens < 1 or temperature < 0:
        raise ConfigError(
            f"new_tokens={new_tokens} must be at least 1, temperature={temperature} at least 0."
        )
    named = [(i,) for i in range(len(tokens))] if names is None else names
    random = np.stack([np.random.default_rng((seed, *own)).random(new_tokens) for own in named])
    written = tokens.to(lm.device, torch.long)
    last = torch.tensor(sorted(stop), dtype=torch.long, device=lm.device)
    ended = torch.zeros(len(written), 1, dtype=torch.bool, device=lm.device)
    kept = new_cache(lm.model) if use_cache else {}
    for step in range(new_tokens):
        unread = written[:, -1:] if kept and step else written
        logits = lm.model(unread, use_cache=use_cache, **kept).logits[:, -1].float()
        if temperature:
            chosen = drawn(logits, temperature, torch.from_numpy(random[:, step]))
        else:
            chosen = logits.argmax(-1, keepdim=True)
        written = torch.cat([written, chosen], dim=1)
        ended |= torch.isin(chosen, last)
        if ended.all():
            break
    return written


def drawn(
    logits: Float[Tensor, "batch vocabulary"], temperature: float, random: Float[Tensor, " batch"]
) -> Int[Tensor, "batch 1"]:
    """Tokens that random numbers choose, by the inverse of the cumulative distribution.

    Args:
        logits: Logits of the next token.
        temperature: Above 0, however small.
        random: Uniform numbers in [0, 1), in float64.
    """
    apart = logits.double() - logits.max(dim=-1, keepdim=True).values
    reached = torch.softmax(apart / temperature, dim=-1).cumsum(dim=-1)
    total = reached[:, -1:]
    below = random.to(reached)[:, None] * total
    below = torch.minimum(below, total.nextafter(torch.zeros_like(total)))  # rounded up to it
    return torch.searchsorted(reached, below, right=True)


def continue_texts(lm: Writer, texts: Sequence[str], **options: Any) -> list[str]:
    """Continue each text; a document separator stands before it.

    Token 0 of a context is a sink, which no edit touches: it must not be a word of the text.

    Args:
        lm: The LM.
        texts: Texts; those of equal length in tokens are read together.
        options: As of `generate`.
    """
    ids = [[lm.separator_id, *one] for one in tokenise(lm.tokenizer, list(texts))]
    vocabulary = token_bytes(lm.tokenizer)
    found = [""] * len(ids)
    for length in sorted({len(one) for one in ids}):
        those = [i for i, one in enumerate(ids) if len(one) == length]
        written = generate(lm, torch.tensor([ids[i] for i in those]), **options)
        for i, row in zip(those, written[:, length:].tolist(), strict=True):
            found[i] = b"".join(vocabulary[token] for token in row).decode(errors="replace")
    return found


def new_cache(model: Any) -> dict[str, Any]:
    """An empty cache of keys and values, under the name that the model's `forward` has for it."""
    from transformers import DynamicCache

    known = inspect.signature(model.forward).parameters
    name = next(name for name in CACHE_NAMES if name in known)
    return {name: DynamicCache(config=model.config)}
