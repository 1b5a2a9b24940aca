"""Text becomes contexts: rows of tokens of equal length, with the document of every token."""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from sae.errors import ConfigError, SourceError
from sae.language.corpus import Corpus
from sae.progress import progress
from sae.types import SPLITS, Split

_BATCH_DOCUMENTS = 128


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    eos_token_id: Any

    def get_vocab(self) -> dict[str, int]:
        """Id of each token of the vocabulary."""
        ...

    def __call__(self, text: Any, **options: Any) -> Mapping[str, Any]:
        """Token ids of texts."""
        ...


class Contexts(NamedTuple):
    """Rows of `ctx` tokens; nothing is padded.

    Args:
        tokens: Token ids.
        document: Number of the document of every token, from 0 within the split; the
            separator belongs to the document that it ends.
    """

    tokens: Int32[np.ndarray, "contexts ctx"]
    document: Int32[np.ndarray, "contexts ctx"]


def separator_id(tokenizer: Tokenizer) -> int:
    """Id of the token between documents: `<|endoftext|>` where there is one, else the EOS.

    An instruction-tuned LM's EOS ends a turn of a chat, and never stood between documents.

    Raises:
        SourceError: If the tokenizer has neither.
    """
    given = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if given is None:
        raise SourceError(
            "The tokenizer has neither <|endoftext|> nor an EOS token to put between documents. "
            "Set tokenizer.eos_token and save it again."
        )
    return int(given)


def special_ids(tokenizer: Tokenizer, every: bool = False) -> tuple[int, ...]:
    """Ids of the tokens that stand for no text: separator, BOS, EOS and pad token.

    Args:
        tokenizer: The LM's tokenizer.
        every: Also its additional special tokens, such as those of a chat template.
    """
    named = [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    more = list(getattr(tokenizer, "all_special_ids", ())) if every else []
    found = [separator_id(tokenizer), *named, *more]
    return tuple(sorted({int(i) for i in found if i is not None}))


def build_contexts(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    split: str,
    ctx: int,
    num_tokens: int | None,
    seed: int,
    val_fraction: float,
    test_fraction: float,
) -> Contexts:
    """The first contexts of a split: documents, each ended by the separator, cut every `ctx`.

    A hash of its text decides the split of a document, so that exact duplicates never straddle
    two splits and streams need no second look; duplicates within a split are dropped. Documents
    of finite corpora come in the order of that hash (a shuffle), those of streams as they come.
    No BOS is added and the tail that fills no context is dropped. With more tokens asked, the
    first contexts stay the same.

    Args:
        corpus: The text. A streaming one is read only as far as needed.
        tokenizer: The LM's tokenizer.
        split: `train`, `val` or `test`.
        ctx: Tokens in a context.
        num_tokens: Number of tokens to give, rounded down to whole contexts; None: all.
        seed: Seed of the hash.
        val_fraction: Share of the documents for validation.
        test_fraction: Share of the documents for the test.

    Raises:
        ConfigError: If an argument is out of range.
        SourceError: If the split holds fewer tokens.
    """
    _check(corpus, split, ctx, num_tokens, val_fraction, test_fraction)
    wanted = None if num_tokens is None else num_tokens // ctx * ctx
    documents = split_documents(corpus, split, seed, val_fraction, test_fraction)
    separator = separator_id(tokenizer)
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    count = 0
    with progress(f"tokenise {corpus.name} ({split})", wanted) as advance:
        while (wanted is None or count < wanted) and (
            texts := list(islice(documents, _BATCH_DOCUMENTS))
        ):
            for ids in tokenise(tokenizer, texts):
                pieces.append(np.array([*ids, separator], dtype=np.int32))
                lengths.append(len(pieces[-1]))
            new = sum(lengths[-len(texts) :])
            advance(new if wanted is None else min(new, wanted - count))
            count += new
    num_contexts = (count if wanted is None else min(count, wanted)) // ctx
    if num_contexts == 0 or (wanted is not None and count < wanted):
        asked = f"{wanted:,} were asked" if wanted else f"one context has {ctx:,}"
        raise SourceError(
            f"The {split} split of {corpus.name} has {count:,} tokens; {asked}. Ask for fewer "
            "(tokens=… for training; epochs=… reads them more than once), give the split a larger "
            "share of the documents, or take a larger corpus."
        )
    end = num_contexts * ctx
    tokens = np.concatenate(pieces)[:end].reshape(num_contexts, ctx)
    ids = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return Contexts(tokens, ids[:end].reshape(num_contexts, ctx))


def split_documents(
    corpus: Corpus, split: str, seed: int, val_fraction: float, test_fraction: float
) -> Iterator[str]:
    """The documents of one split in the order of `build_contexts`, without exact duplicates."""

    def chosen() -> Iterator[tuple[bytes, str]]:
        seen = set()
        for text in corpus.documents():
            digest = blake2b(text.encode(), key=str(seed).encode(), digest_size=16).digest()
            if _split_of(digest, val_fraction, test_fraction) == split and digest not in seen:
                seen.add(digest)
                yield digest, text

    return (text for _, text in (chosen() if corpus.streaming else sorted(chosen())))


def _split_of(digest: bytes, val_fraction: float, test_fraction: float) -> Split:
    u = int.from_bytes(digest[:8], "big") / 2**64
    if u < test_fraction:
        return "test"
    return "val" if u < test_fraction + val_fraction else "train"


def tokenise(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, of any length, with nothing added."""
    # A text that spells out a special token is text: it must not look like a document's end.
    options = {"add_special_tokens": False, "split_special_tokens": True}
    # Not verbose: documents longer than the LM's context are no mistake here.
    return tokenizer(texts, return_attention_mask=False, verbose=False, **options)["input_ids"]


def _check(
    corpus: Corpus,
    split: str,
    ctx: int,
    num_tokens: int | None,
    val_fraction: float,
    test_fraction: float,
) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split={split} is not one of {', '.join(SPLITS)}.")
    if ctx < 2:
        raise ConfigError(f"ctx={ctx} is too short; a context needs at least 2 tokens.")
    held_out = val_fraction + test_fraction
    # All documents may be held out, as long as none is asked for training.
    if min(val_fraction, test_fraction) < 0 or held_out > 1 or (held_out == 1 and split == "train"):
        raise ConfigError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} must be at least 0 "
            "and leave a share for training: together below 1."
        )
    if num_tokens is not None and num_tokens < ctx:
        raise ConfigError(f"{num_tokens} tokens fill no context of ctx={ctx}. Ask for more.")
    if num_tokens is None and corpus.streaming:
        raise ConfigError(
            f"{corpus.name} is a stream without a known end: say how many tokens (tokens=…)."
        )
