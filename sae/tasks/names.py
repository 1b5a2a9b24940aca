"""First names with a gender: frequencies of the US census of 1990, out of the package `names`.

The package is installed by the extra `names` and never imported: two of its files are read.
"""

from functools import cache
from hashlib import sha256
from importlib import metadata
from typing import NamedTuple

import numpy as np

from sae.errors import ConfigError, SourceError
from sae.language.text import Tokenizer
from sae.tasks.task import single_tokens

GENDERS = ("female", "male")
"""Names of the labels 0 and 1."""
RATIO = 10
"""A name that both genders have is kept where it is so many times as frequent with one of them."""
_SHA256 = {
    "female": "bd2f310fc4e5d5e5ea122c9d4342c9821145823118eb20db1647f305ec77b358",
    "male": "0a5078ef6effe3b483d15b0f7f95047662126c9bfb624ecd5e5b978fc0f2470b",
}


class Name(NamedTuple):
    """A first name.

    Args:
        word: As it is written.
        label: 1 for male, 0 for female.
    """

    word: str
    label: int


class Names(NamedTuple):
    """Names of a training and a test side; none is on both.

    Args:
        train: Names that edits are fitted on.
        test: Names that edits are measured on.
    """

    train: list[Name]
    test: list[Name]


@cache
def unambiguous() -> tuple[Name, ...]:
    """All names that go with one gender, the most frequent of each gender first.

    Raises:
        ConfigError: If the package is not installed.
        SourceError: If its files are others than those of version 0.3.0.
    """
    frequency = [_frequencies(gender) for gender in GENDERS]
    return tuple(
        Name(word, label)
        for label, (own, other) in enumerate((frequency, frequency[::-1]))
        for word, share in sorted(own.items(), key=lambda entry: -entry[1])
        if share >= RATIO * other.get(word, 0.0)
    )


def single_token_names(tokenizer: Tokenizer, count: int, *, test: float, seed: int) -> Names:
    """The most frequent names of each gender that are one token behind a space, split by name.

    Args:
        tokenizer: The LM's tokenizer.
        count: Names of each gender.
        test: Share of the names of each gender for the test.
        seed: Seed of the split.

    Raises:
        ConfigError: If this LM has fewer names of one token.
    """
    names = unambiguous()
    single = single_tokens(tokenizer, [name.word for name in names])
    sides, rng = Names([], []), np.random.default_rng(seed)
    for label, gender in enumerate(GENDERS):
        own = [name for name in names if name.label == label and name.word in single]
        if len(own) < count:
            raise ConfigError(
                f"{len(own)} {gender} names are one token for this LM, and {count} are asked for; "
                "names of several tokens are no use, since all their tokens would have to be "
                "edited alike. Ask for fewer names, or choose an LM with a larger vocabulary."
            )
        order = rng.permutation(count)
        num_test = round(test * count)
        sides.test.extend(own[i] for i in order[:num_test])
        sides.train.extend(own[i] for i in order[num_test:])
    return sides


def _frequencies(gender: str) -> dict[str, float]:
    """Percent of the people of a gender who have a name, by name."""
    try:
        path = metadata.distribution("names").locate_file(f"names/dist.{gender}.first")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            "Tasks with first names need the package names, which is not installed. Install it: "
            'pip install "lightning-sae[names]".'
        ) from None
    with open(str(path), "rb") as file:
        content = file.read()
    if sha256(content).hexdigest() != _SHA256[gender]:
        raise SourceError(
            f"{path} is not the file of names 0.3.0: its SHA-256 differs. Install it again: "
            "pip install --force-reinstall names==0.3.0."
        )
    rows = [line.split() for line in content.decode().splitlines() if line.strip()]
    return {row[0].title(): float(row[1]) for row in rows}
