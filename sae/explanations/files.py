"""Files of explanations: ours, and those of other tools.

`*.csv` and `*.jsonl` with `latent` and `explanation`; rows of a Neuronpedia export with `index` and
`description` (`*.jsonl`, or a `*.json` list); a folder of delphi with `<hook>_latent<N>.txt`.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sae.errors import ConfigError, SourceError
from sae.intact import require_content
from sae.writing import replacing

_NAMES = (("latent", "explanation"), ("index", "description"))
_OF_DELPHI = re.compile(r".*_latent([0-9]+)\.txt")
_LATENT = re.compile(r"-?[0-9]+")


def read_explanations(path: str | Path) -> dict[str, str]:
    """Explanations by the name of the latent.

    Raises:
        ConfigError: If there is no such file or folder, or it is of another kind.
        SourceError: If it is damaged, has no explanation, or explains a latent twice.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        rows = _of_delphi(file)
    elif not file.is_file():
        raise ConfigError(
            f"There is no file {path}. Give a .csv or .jsonl file of latent and explanation, an "
            "export of Neuronpedia, or delphi's folder of explanations."
        )
    elif file.suffix in _READERS:
        rows = ((f"row {i}", *_pair(row, file, i)) for i, row in enumerate(_rows(file), 1))
    else:
        raise ConfigError(f"{path} is neither of {', '.join(_READERS)} nor a folder of delphi.")
    found: dict[str, str] = {}
    for where, latent, words in rows:
        if not _LATENT.fullmatch(latent):
            raise SourceError(f"{path}, {where}: {latent!r} is not the number of a latent.")
        latent = f"{'-' if latent.startswith('-') else ''}{abs(int(latent))}"  # 007 is latent 7
        if latent in found:
            raise SourceError(f"{path}, {where}: latent {latent} is explained twice. Drop one.")
        if words.strip():
            found[latent] = words.strip()
    if not found:
        raise SourceError(f"{path} holds no explanation. Give another file.")
    return found


def write_explanations(file: Path, explanations: Mapping[str, str]) -> None:
    """Write a CSV file that `read_explanations` reads."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(_NAMES[0])
    writer.writerows(explanations.items())
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    require_content(file, SourceError)  # a pipe would be waited for
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = _READERS[file.suffix](text)
        if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
            raise ValueError("it holds no list")
        yield from rows
    except (ValueError, csv.Error) as error:  # not UTF-8, no JSON
        raise SourceError(f"{file} cannot be read ({error}).".replace("\n", " ")) from None


def _lines(text: str) -> Iterator[Any]:
    return (json.loads(line) for line in text.split("\n") if line.strip())


_READERS: dict[str, Any] = {
    ".csv": lambda text: csv.DictReader(io.StringIO(text, newline="")),
    ".jsonl": _lines,
    ".json": json.loads,
}


def _pair(row: Any, file: Path, i: int) -> tuple[str, str]:
    for latent, words in _NAMES:
        if isinstance(row, Mapping) and row.get(latent) is not None:
            if isinstance(row.get(words), str):
                return str(row[latent]).strip(), row[words]
            raise SourceError(f"{file}, row {i}: latent {row[latent]} has no {words} in words.")
    columns = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)[:60]
    raise SourceError(
        f"{file}, row {i} has neither latent and explanation nor index and description; it has: "
        f"{columns}."
    )


def _of_delphi(folder: Path) -> Iterator[tuple[str, str, str]]:
    for file in sorted(folder.glob("*.txt")):
        if name := _OF_DELPHI.fullmatch(file.name):
            require_content(file, SourceError)
            try:
                text = file.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise SourceError(f"{file} cannot be read ({error}).") from None
            try:
                words = json.loads(text)  # delphi writes the explanation as a JSON string
            except ValueError:
                words = text
            yield file.name, name[1], words if isinstance(words, str) else text
