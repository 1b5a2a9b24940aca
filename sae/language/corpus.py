"""What a corpus is, and what all kinds of corpora share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sae.errors import SourceError
from sae.language.kinds import Kind


@runtime_checkable
class Corpus(Protocol):
    """A named sequence of documents, the same at every reading.

    Attributes:
        name: For people.
        streaming: Too large to be read as a whole: taken in its own order, as far as needed.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def streaming(self) -> bool: ...  # noqa: D102

    def identity(self) -> dict[str, object]:
        """What decides the documents; JSON-able, and had without the network."""
        ...

    def to_config(self) -> dict[str, object]:
        """The config that `corpus_from_config` reads."""
        ...

    def documents(self) -> Iterator[str]:
        """The documents that are not empty."""
        ...


@dataclass(frozen=True, kw_only=True)
class CorpusKind(Kind, ABC):
    """What all kinds share.

    Args:
        name: For people; it decides nothing.
    """

    name: str

    @property
    def streaming(self) -> bool:
        """Whether documents are taken in the corpus' own order, as far as needed."""
        return False

    def identity(self) -> dict[str, object]:
        """What decides the documents; JSON-able, and had without the network."""
        config = self.to_config()
        del config["name"]
        return config

    def documents(self) -> Iterator[str]:
        """The documents that are not empty."""
        return (text for text in self._texts() if text.strip())

    @abstractmethod
    def _texts(self) -> Iterable[str]:
        """All documents, empty ones included."""


def no_field(where: str, field: str, there: Iterable[object]) -> str:
    """The message for a field that a table or record lacks."""
    names = ", ".join(map(str, there)) or "none"
    return f"{where} has no field {field!r}. Its fields: {names}. Set corpus.text_field."


def text_in(value: object, where: str, field: str) -> str:
    """The text of a record.

    Raises:
        SourceError: If it is something else, such as token ids.
    """
    if not isinstance(value, str):
        raise SourceError(
            f"{where}: {field} is {type(value).__name__}, not text. Set corpus.text_field to a "
            "column of texts; they are tokenised here, by the tokenizer of the LM."
        )
    return value
