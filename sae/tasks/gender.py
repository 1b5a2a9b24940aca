"""Tasks on the gender of a first name: naming the gender, and choosing the pronoun.

The protocol is that of arXiv 2309.08600, version 1, with templates and names of our own.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from sae.errors import ConfigError
from sae.language.text import Tokenizer, separator_id, tokenise
from sae.tasks.names import GENDERS, Name, Names
from sae.tasks.task import Prompt, Task, ids_of, one_token

SHOTS = 3
"""Solved examples of each gender in front of a query."""
_WHEN = ("Yesterday", "Today", "Last week", "This morning", "Last night", "On Monday",
         "Last year", "In May")  # fmt: skip
_WHERE = ("store", "park", "beach", "bank", "office", "library", "museum", "station")
MOST_VARIANTS = len(_WHEN) * len(_WHERE)
"""Prompts of one name that differ; of pronouns there are no more."""


class Sides(NamedTuple):
    """A task on two sets of names.

    Args:
        train: Prompts that edits are fitted on.
        test: Prompts that edits are measured on.
    """

    train: Task
    test: Task


def name_to_gender(
    tokenizer: Tokenizer, names: Names, *, train: int, test: int, seed: int
) -> Sides:
    r"""`Name: X\nGender:` behind three solved examples of each gender.

    A variant has its own examples in its own order, drawn from the training names; the query of a
    training prompt is none of them.

    Args:
        tokenizer: The LM's tokenizer.
        names: Names.
        train: Variants of each training name.
        test: Variants of each test name, the first of them.
        seed: Seed of the examples.

    Raises:
        ConfigError: If a name or an answer is no single token.
    """
    rng = np.random.default_rng(seed)
    variants = []
    for _ in range(max(train, test)):
        shots: list[Name] = []
        for label in (0, 1):
            own = [name for name in names.train if name.label == label]
            if len(own) <= SHOTS:
                raise ConfigError(
                    f"{len(own)} {GENDERS[label]} names are for training, and {SHOTS} of them are "
                    "examples in the prompt. Ask for more names."
                )
            shots += [own[i] for i in rng.choice(len(own), SHOTS, replace=False)]
        shots = [shots[i] for i in rng.permutation(len(shots))]
        before = "".join(f"Name: {one.word}\nGender: {GENDERS[one.label]}\n" for one in shots)
        variants.append((f"{before}Name:", "\nGender:", {one.word for one in shots}))
    return _sides("name → gender", tokenizer, names, GENDERS, variants, train, test)


def pronoun(tokenizer: Tokenizer, names: Names, *, train: int, test: int) -> Sides:
    """`Yesterday X went to the store, and`, followed by he or she.

    Variants differ in the time and the place.

    Args:
        tokenizer: The LM's tokenizer.
        names: Names.
        train: Variants of each training name.
        test: Variants of each test name, the first of them.

    Raises:
        ConfigError: If a name or an answer is no single token.
    """
    whens, wheres = len(_WHEN), len(_WHERE)
    variants = [
        (_WHEN[i % whens], f" went to the {_WHERE[(i // whens + i) % wheres]}, and", set())
        for i in range(max(train, test))
    ]
    return _sides("pronoun", tokenizer, names, ("she", "he"), variants, train, test)


PROMPTED: dict[str, Callable[..., Sides]] = {"gender": name_to_gender, "pronoun": pronoun}


def _sides(
    title: str, tokenizer: Tokenizer, names: Names, words: tuple[str, str],
    variants: list[tuple[str, str, set[str]]], train: int, test: int,
) -> Sides:  # fmt: skip
    answers = [one_token(tokenizer, f" {word}") for word in words]

    def task(side: list[Name], count: int) -> Task:
        wanted = [
            (before, name, after) for before, after, left_out in variants[:count]
            for name in side if name.word not in left_out
        ]  # fmt: skip
        return Task(title, tuple(_prompts(tokenizer, wanted, answers)))

    return Sides(task(names.train, train), task(names.test, test))


def _prompts(
    tokenizer: Tokenizer, wanted: list[tuple[str, Name, str]], answers: list[int]
) -> Iterator[Prompt]:
    """Prompts with every position from the name on among their places."""
    starts = tokenise(tokenizer, [f"{before} {name.word}" for before, name, _ in wanted])
    whole = tokenise(tokenizer, [f"{before} {name.word}{after}" for before, name, after in wanted])
    before = {text: ids_of(tokenizer, text) for text in {text for text, _, _ in wanted}}
    separator = separator_id(tokenizer)
    for (text, name, _), start, ids in zip(wanted, starts, whole, strict=True):
        tokens = (separator, *map(int, ids))
        first = len(start)  # the separator is before, the name the last of them
        if tokens[:first] != before[text] or tokens[1 : first + 1] != tuple(map(int, start)):
            raise ConfigError(
                f"The name {name.word!r} is not one token of its own in {text[-20:]!r}, so its "
                "position is not known. Choose other names or another LM."
            )
        places = {"name": first} | {f"token {i - first} after the name": i
                                    for i in range(first + 1, len(tokens))}  # fmt: skip
        yield Prompt(
            tokens, answers[name.label], answers[1 - name.label],
            places=places, group=name.word, label=name.label,
        )  # fmt: skip
