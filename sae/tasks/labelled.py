"""Texts with labels: the sets of a probing benchmark inside a wheel, or a user's CSV file."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int

from sae.errors import ConfigError, SourceError
from sae.intact import require_content
from sae.language.fetch import WheelFile
from sae.provenance import content_key

PROBES = WheelFile(
    package="sae-probes",
    version="0.4.2",
    sha256="245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03",
    member="sae_probes/data/probing_datasets_MASTER.csv.zst",
    bytes=45068606,
)
"""The list of the 113 binary sets of Kantamneni et al. 2025 (arXiv 2502.16681), beside them."""


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """A set of texts, each of one class.

    Args:
        name: Name to show to people.
        texts: Texts in the order of the source.
        labels: Number of the class of each text.
        classes: Names of the classes, sorted.
    """

    name: str
    texts: Sequence[str]
    labels: Int[np.ndarray, " texts"]
    classes: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        """Changes when a text or a label does; the name may differ."""
        return content_key({"texts": list(self.texts), "labels": self.labels.tolist()})

    def first_of_each(self, num_per_class: int) -> "LabelledTexts":
        """The first texts of every class, in the order of the source.

        Example:
            >>> three = LabelledTexts("abc", ["a", "b", "c"], np.array([0, 1, 0]), ("x", "y"))
            >>> three.first_of_each(1).texts
            ['a', 'b']
        """
        rank = np.zeros(len(self.labels), dtype=np.int64)
        for label in range(len(self.classes)):
            members = self.labels == label
            rank[members] = np.arange(members.sum())
        chosen = np.flatnonzero(rank < num_per_class)
        texts = [self.texts[int(i)] for i in chosen]
        return replace(self, texts=texts, labels=self.labels[chosen])

    @classmethod
    def of(cls, name: str, texts: Sequence[str], classes: Sequence[str]) -> "LabelledTexts":
        """Number the classes in sorted order.

        Raises:
            SourceError: If there are fewer than two classes, or a text is blank.
        """
        words, labels = np.unique(np.asarray(classes, dtype=str), return_inverse=True)
        if len(words) < 2:
            raise SourceError(
                f"{name} has {len(words)} classes ({', '.join(words)}); probes need two or more."
            )
        if blank := [i for i, text in enumerate(texts) if not text.strip()]:
            raise SourceError(f"{name} has no text in row {blank[0]} (counted from 0). Drop it.")
        return cls(name, list(texts), labels.astype(np.int64), tuple(map(str, words)))


def read_csv(path: str) -> LabelledTexts:
    """A user's CSV file with the columns `text` and `label`, of two or more classes.

    Raises:
        SourceError: If there is no such file, a column is missing, or a row has no text.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise SourceError(f"csv={path} is not a file. Give a CSV file with columns text,label.")
    require_content(file, SourceError)
    return _parsed(file.stem, file.read_bytes(), "text", "label")


def probe_sets(names: Sequence[str]) -> list[LabelledTexts]:
    """Binary sets of the benchmark by their names; `all` stands for all 113.

    Raises:
        ConfigError: If there is no set of that name.
        SourceError: If the wheel cannot be fetched.
    """
    known = probe_set_names()
    wanted = list(known) if list(names) == ["all"] else list(names)
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.3) or list(known)[:3]
            raise ConfigError(
                f"sets: {name} is not one of the {len(known)} sets, for example "
                f"{', '.join(near)}. [all] means all of them."
            )
    return [_parsed(name, _unpack(known[name]), "prompt", "target") for name in wanted]


@cache
def probe_set_names() -> dict[str, str]:
    """The 113 names, each with its file's place in the wheel."""
    table = _table(_unpack(PROBES.member), PROBES.member)
    files = table.loc[table["Data type"] == "Binary Classification", "Dataset save name"]
    return {Path(file).name.removesuffix(".csv"): f"sae_probes/data/{file}.zst" for file in files}


def _unpack(member: str) -> bytes:
    """Content of a file of the wheel that is compressed with Zstandard."""
    import pyarrow

    with pyarrow.CompressedInputStream(
        str(WheelFile(**{**PROBES.model_dump(), "member": member}).fetch()), "zstd"
    ) as file:
        return file.read()


def _parsed(name: str, content: bytes, text: str, label: str) -> LabelledTexts:
    table = _table(content, name)
    for column in (text, label):
        if column not in table:
            raise SourceError(
                f"{name} has no column {column}. Its columns: {', '.join(table.columns)}."
            )
    return LabelledTexts.of(name, table[text].tolist(), table[label].tolist())


def _table(content: bytes, name: str):
    import pandas

    try:
        return pandas.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    except ValueError as error:  # not UTF-8, rows of unlike length, nothing at all
        raise SourceError(f"{name} is not a CSV table ({error}).".replace("\n", " ")) from None
