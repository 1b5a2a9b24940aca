"""The bytes of tokens, and their text as people read it."""

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Any

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that each token stands for, by id; special tokens stand for their names.

    A token may end inside a character; the bytes of tokens in a row are those of the text.

    Args:
        tokenizer: A fast transformers tokenizer, of bytes (GPT-2, LLaMA 3) or of SentencePiece
            (LLaMA 2, Gemma).
    """
    size = max(tokenizer.get_vocab().values()) + 1
    words = tokenizer.convert_ids_to_tokens(list(range(size)))
    special = {int(i) for i, added in tokenizer.added_tokens_decoder.items() if added.special}
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    by_bytes = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
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


def pieces(ids: Iterable[int], vocabulary: Sequence[bytes]) -> list[str]:
    r"""The text of each token; a character of several tokens belongs to the one that ends it.

    Example:
        >>> vocabulary = [b" a", b"\xf0\x9f", b"\x8c\xb1", b"\xff"]
        >>> pieces([0, 1, 2, 3, 0], vocabulary)
        [' a', '', '🌱', '�', ' a']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(vocabulary[i]) for i in ids]


def _byte_letters() -> dict[int, str]:
    """The letters that byte-level tokenizers write bytes as (source: GPT-2's encoder)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    shifted = {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return {byte: chr(byte) for byte in plain} | shifted
