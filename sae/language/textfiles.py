"""The user's own text: `.txt` and `.jsonl` files, alone or in folders."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from sae.errors import SourceError
from sae.intact import require_content, visible
from sae.language.corpus import CORPORA, WholeCorpus, no_field, text_in
from sae.language.files import files_identity
from sae.reading import parse_json
from sae.settings import Absolute, setting


@CORPORA.register("text")
class TextFiles(WholeCorpus):
    """A text file or a folder with `.txt` files, in UTF-8.

    A paragraph is ended by an empty line. A single file is divided by paragraphs (`auto`), since as
    one document it could not be split into training and test.
    """

    path: Absolute = setting(
        help="the file or folder; sub-folders are also read, hidden files and folders are not"
    )
    document: Literal["auto", "file", "paragraph", "line"] = setting(
        "auto", help="what is one document; auto: file in a folder, paragraph in a single file"
    )

    def identity(self) -> dict[str, object]:
        """Hashes of the files, and how they are divided."""
        return {"kind": self.kind, **_files(self.path, ".txt"), "document": self._division()}

    def _division(self) -> str:
        if self.document != "auto":
            return self.document
        return "file" if Path(self.path).is_dir() else "paragraph"

    def _texts(self) -> Iterator[str]:
        for path in _list_files(self.path, ".txt"):
            lines = _lines(path)
            if self._division() == "file":
                yield "".join(lines)
            elif self._division() == "line":
                yield from (line.rstrip("\n") for line in lines)
            else:
                yield from _paragraphs(lines)


@CORPORA.register("jsonl")
class JsonLines(WholeCorpus):
    """A `.jsonl` file or a folder of them: one JSON object a line, one of its fields the text."""

    path: Absolute = setting(help="the file or folder; sub-folders are also read")
    text_field: str = setting("text", help="name of the field")

    def identity(self) -> dict[str, object]:
        """Hashes of the files, and the field."""
        files = _files(self.path, ".jsonl")
        return {"kind": self.kind, **files, "text_field": self.text_field}

    def _texts(self) -> Iterator[str]:
        for path in _list_files(self.path, ".jsonl"):
            for number, line in enumerate(_lines(path), start=1):
                if line.strip():
                    yield self._text(line, f"{path}, line {number}")

    def _text(self, line: str, where: str) -> str:
        record = parse_json(line, where, SourceError)
        if not isinstance(record, dict) or self.text_field not in record:
            there = record if isinstance(record, dict) else ()
            raise SourceError(no_field(where, self.text_field, there))
        text = text_in(record[self.text_field], where, self.text_field)
        # JSON can spell half of a surrogate pair, which no UTF-8 text has and no tokenizer takes.
        return text.encode("utf-8", "replace").decode()


def _list_files(path: str, suffix: str) -> list[Path]:
    """The files that are read: of a folder those that are not hidden, in the order of names."""
    place = Path(path)
    files = [place]
    if place.is_dir():
        found = sorted(visible(place.rglob(f"*{suffix}"), place))
        files = [file for file in found if not file.is_dir()]  # a folder's files are listed, too
    if not files or not (place.exists() or place.is_symlink()):
        problem = f"holds no {suffix} file" if place.is_dir() else "does not exist"
        raise SourceError(
            f"corpus.path={path} {problem}. Give a {suffix} file or a folder of them."
        )
    for file in files:
        require_content(file, SourceError)
    return files


def _files(path: str, suffix: str) -> dict[str, object]:
    place = Path(path)
    folder = place if place.is_dir() else place.parent
    return {"files": files_identity(_list_files(path, suffix), folder)}


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:  # Windows writes a byte order mark
        try:
            for line in file:
                yield line.removeprefix("\ufeff")  # of the next file, where several were joined
        except UnicodeDecodeError as error:
            raise SourceError(f"{path} is not UTF-8: {error.reason}. Convert it.") from error


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)
