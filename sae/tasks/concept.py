"""Concepts that an LM is to write about, as labelled texts; neutral openings of prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae.errors import ArtifactError, ConfigError, SourceError
from sae.language.pieces import token_bytes
from sae.language.text import Tokenizer, tokenise
from sae.reading import read_text
from sae.tasks.labelled import LabelledTexts, probe_sets, read_csv

SPORT = ("162_agnews_1", "161_agnews_0", "163_agnews_2")
"""News about sport, against news about the world and about business."""
CLASSES = ("others", "concept")
OPENINGS = (
    "Yesterday, the", "It was the first", "When she came home", "There are many ways",
    "In the morning,", "The man said that", "We have always been", "My friend told me",
    "In this article,", "The new book is", "One of the best", "They went to the",
    "If you want to", "A group of people", "The problem is that", "He looked at the",
)  # fmt: skip
"""Neutral beginnings: narration, speech, explanation. Each is four tokens of SmolLM2, so that one
pass reads them all."""


class Concept(NamedTuple):
    """A concept with texts that have it and texts that do not.

    Args:
        words: Its name, as it stands in a prompt: `sport`.
        texts: Class 1 has the concept, class 0 does not.
    """

    words: str
    texts: LabelledTexts


def read_concept(
    sets: Sequence[str] = SPORT, csv: str = "", label: str = "", words: str = ""
) -> Concept:
    """A concept out of the labelled sets of the wheel sae-probes, or out of a CSV file.

    Args:
        sets: Binary sets. Class 1 of the first one is the concept; the others are class 1 of the
            further sets, or class 0 of the first where it is the only one.
        csv: A file with the columns text,label, which takes the place of the sets.
        label: The class of the file that is the concept; all its other classes are not.
        words: The concept in words; "" takes `sport` or the label.

    Raises:
        SourceError: If a set or the file cannot be read, or the file has a single class.
        ConfigError: If the label is not in the file, or the words are not known.
    """
    if csv:
        if tuple(sets) != SPORT:
            raise ConfigError(
                "eval.steer.sets has no effect with eval.steer.csv, which takes their place. Give "
                "one of them."
            )
        read = read_csv(csv)
        if label not in read.classes:
            raise ConfigError(
                f"eval.steer.label={label!r} is not a class of {csv}. Its classes: "
                f"{', '.join(read.classes)}."
            )
        chosen = read.labels == read.classes.index(label)
        return Concept(words or label, _labelled(read.name, read.texts, chosen))
    if label:
        raise ConfigError("eval.steer.label is a class of a CSV file. Give eval.steer.csv as well.")
    if not words and tuple(sets) != SPORT:
        raise ConfigError(
            "eval.steer.words is not given. Name the concept of these sets in words, for example "
            "eval.steer.words=business: the arm that is only prompted needs them."
        )
    first, *others = probe_sets(sets)
    positive = _of_class(first, 1)
    negative = [text for other in others for text in _of_class(other, 1)] or _of_class(first, 0)
    labels = np.repeat([True, False], [len(positive), len(negative)])
    return Concept(words or "sport", _labelled(first.name, [*positive, *negative], labels))


def snippets(
    tokenizer: Tokenizer, texts: LabelledTexts, index: Sequence[int], tokens: int
) -> LabelledTexts:
    """Texts cut into pieces of so many tokens, which keep their labels.

    The rest of a text is a piece if it has half as many tokens, or nothing stands before it.

    Args:
        tokenizer: The LM's tokenizer.
        texts: The texts.
        index: Indices of the texts to cut.
        tokens: Tokens in a piece.
    """
    vocabulary = token_bytes(tokenizer)
    found, labels = [], []
    for i, ids in zip(index, tokenise(tokenizer, [texts.texts[i] for i in index]), strict=True):
        for start in range(0, len(ids), tokens):
            piece = ids[start : start + tokens]
            text = b"".join(vocabulary[one] for one in piece).decode(errors="replace")
            if text.strip() and (start == 0 or 2 * len(piece) >= tokens):
                found.append(text)
                labels.append(texts.labels[i])
    return LabelledTexts(texts.name, found, np.asarray(labels, np.int64), texts.classes)


def read_openings(file: str | None, most: int) -> list[str]:
    """The first prompts: lines of a file, or `OPENINGS`.

    Args:
        file: One prompt a line, in UTF-8; None: `OPENINGS`. Repeated lines
            count once, so that no prompt is in both halves.
        most: Largest number of prompts.

    Raises:
        SourceError: If there is no such file, or it is not UTF-8.
        ConfigError: If there are fewer than four, or `OPENINGS` has fewer than asked for.
    """
    lines: list[str] = [*OPENINGS]
    if file:
        try:
            read = read_text(Path(file).expanduser())
        except ArtifactError as error:
            raise SourceError(
                f"eval.steer.text_file={file} cannot be read ({error}). It must be a text file in "
                "UTF-8 with one prompt a line."
            ) from None
        lines = list(dict.fromkeys(line.rstrip() for line in read.splitlines() if line.strip()))
    elif most > len(lines):
        raise ConfigError(
            f"eval.steer.prompts={most}: there are {len(lines)} openings. Give a file of your own "
            "(eval.steer.text_file) or ask for fewer."
        )
    if len(lines[:most]) < 4:
        raise ConfigError(
            f"eval.steer.text_file={file} has {len(lines)} different prompts; at least 4 are "
            "needed: half of them choose the size of the push, the others measure it."
        )
    return lines[:most]


def _of_class(one: LabelledTexts, label: int) -> list[str]:
    return [one.texts[int(i)] for i in np.flatnonzero(one.labels == label)]


def _labelled(name: str, texts: Sequence[str], chosen: np.ndarray) -> LabelledTexts:
    return LabelledTexts(name, list(texts), chosen.astype(np.int64), CLASSES)
