"""The bytes of tokens, and their text as people read it."""

import codecs
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each token stands for, by id; special tokens stand for their names.

    A token may end inside a character; the bytes of tokens in a row are those of the text.

    Args:
        tokenizer: A transformers tokenizer, of bytes (GPT-2, LLaMA 3) or of SentencePiece
            (LLaMA 2, Gemma). Of one without a fast backend, tokens are decoded one by one, and
            parts of characters are lost.
    """
    words: list[str | None] = [None] * num_tokens(tokenizer)
    for word, i in tokenizer.get_vocab().items():
        words[i] = word
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {int(i) for i, token in added.items() if token.special}
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None and hasattr(tokenizer, "decode"):
        return [tokenizer.decode([i]).encode("utf-8", "replace") for i in range(len(words))]
    by_bytes = "ByteLevel" in repr(getattr(backend, "decoder", None))
    found = []
    for i, word in enumerate(words):
        if word is None:
            found.append(b"")
        elif i in special:
            found.append(word.encode())
        elif by_bytes and all(letter in letters for letter in word):
            found.append(bytes(letters[letter] for letter in word))
        elif (byte := _BYTE.fullmatch(word)) and not by_bytes:
            found.append(bytes.fromhex(byte[1]))
        else:
            found.append((word if by_bytes else word.replace("▁", " ")).encode("utf-8", "replace"))
    return found


def num_tokens(tokenizer: Any) -> int:
    """Ids that stand for a token; LMs may have more logits than that."""
    return max(tokenizer.get_vocab().values()) + 1


def pieces(ids: Iterable[int], vocabulary: Sequence[bytes]) -> list[str]:
    r"""The text of each token; a character of several tokens belongs to the one that ends it.

    Example:
        >>> vocabulary = [b" a", b"\xf0\x9f", b"\x8c\xb1", b"\xff"]
        >>> pieces([0, 1, 2, 3, 0], vocabulary)
        [' a', '', '🌱', '�', ' a']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(vocabulary[i]) for i in ids]


def visible(piece: str) -> str:
    r"""A token as a reader sees it: newlines as signs, control characters replaced.

    Example:
        >>> visible("a\n\0")
        'a↵\ufffd'
    """
    return "".join(
        "↵" if letter == "\n" else "→" if letter == "\t"
        else "\ufffd" if unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in piece
    )  # fmt: skip


def _byte_letters() -> dict[int, str]:
    """The letters that byte-level tokenizers write bytes as (source: GPT-2's encoder)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    shifted = {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return {byte: chr(byte) for byte in plain} | shifted
