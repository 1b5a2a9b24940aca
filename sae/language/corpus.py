"""A corpus, and the base of all kinds of corpora."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar, Protocol, runtime_checkable

from sae.errors import SourceError
from sae.registry import Registry
from sae.settings import Settings, setting


@runtime_checkable
class Corpus(Protocol):
    """A named sequence of documents, the same at every reading.

    Attributes:
        name: Name to show to people.
        streaming: True if it is too large to read as a whole: it is then read in its own order, up
            to the tokens that are needed.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def streaming(self) -> bool: ...  # noqa: D102

    def identity(self) -> dict[str, object]:
        """Identity of the documents; JSON-able, and had without the network."""
        ...

    def to_config(self) -> dict[str, object]:
        """The config that `corpus_from_config` reads."""
        ...

    def documents(self) -> Iterator[str]:
        """The documents that are not empty."""
        ...


class CorpusKind(Settings, ABC):
    """Base of the corpora that a configuration can name; their settings are their fields."""

    where = "corpus."
    kind: ClassVar[str]

    name: str = setting(help="for people; it decides nothing")

    def identity(self) -> dict[str, object]:
        """Identity of the documents; JSON-able, and had without the network."""
        config = self.to_config()
        del config["name"]
        return config

    def to_config(self) -> dict[str, object]:
        """The config that `corpus_from_config` reads."""
        return {"kind": self.kind, **self.model_dump()}

    def documents(self) -> Iterator[str]:
        """The documents that are not empty."""
        return (text for text in self._texts() if text.strip())

    @abstractmethod
    def _texts(self) -> Iterable[str]:
        """All documents, empty ones included."""


class WholeCorpus(CorpusKind):
    """Base of the corpora that are read as a whole, in an order of ours."""

    @property
    def streaming(self) -> bool:
        """True if documents are read in the corpus' own order, up to the tokens that are needed."""
        return False


CORPORA: Registry[type[CorpusKind]] = Registry("corpus.kind", "kind")
"""Kinds of corpora by the word that `corpus.kind` takes."""


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
