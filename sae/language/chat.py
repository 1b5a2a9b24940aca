"""Replies of an LM in a conversation, by the chat template of its tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sae.errors import SourceError
from sae.language.generate import Writer, generate
from sae.language.pretrained import explained


def answer(
    lm: Writer, messages: Sequence[Mapping[str, str]], max_tokens: int
) -> tuple[str, int, int]:
    """Continue a conversation by the likeliest tokens until the LM ends its turn.

    Args:
        lm: The LM.
        messages: `role` and `content` of each message.
        max_tokens: Longest reply.

    Returns:
        The reply, and the numbers of tokens of prompt and reply.

    Raises:
        SourceError: If the tokenizer has no chat template, or it does not take these messages.
        ConfigError: If the conversation is longer than the LM allows.
    """
    tokenizer: Any = lm.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise SourceError(
            f"{lm.name} cannot chat: its tokenizer has no chat template. Choose an LM that was "
            "trained on instructions, or a server (base_url)."
        )
    found = explained(
        lambda: tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False
        ),
        f"The chat template of {lm.name}", "Choose another LM, or a server (base_url).",
    )  # fmt: skip
    ends = _ends(lm)
    written = generate(lm, torch.tensor([found]), new_tokens=max_tokens, stop=ends)
    reply = written[0, len(found) :].tolist()
    text = tokenizer.decode([i for i in reply if i not in ends], skip_special_tokens=True)
    return text, len(found), len(reply)


def _ends(lm: Writer) -> frozenset[int]:
    """Tokens that end a turn."""
    known = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    listed = known if isinstance(known, list) else [known]
    found = [lm.separator_id, lm.tokenizer.eos_token_id, *listed]
    return frozenset(int(i) for i in found if i is not None)
