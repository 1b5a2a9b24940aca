"""Indirect object identification: who was given something, of two names.

Templates, places and objects are those of Wang et al. 2022 (arXiv 2211.00593, appendix).
"""

import random
from itertools import chain
from typing import Literal

from sae.errors import ConfigError
from sae.language.text import Tokenizer
from sae.tasks.task import Prompt, Task, ids_of, single_tokens

Counterfactual = Literal["io", "s2", "abc"]
NAMES = (
    "Aaron", "Adam", "Alan", "Alex", "Alice", "Amy", "Anderson", "Andre", "Andrew", "Andy", "Anna",
    "Anthony", "Arthur", "Austin", "Blake", "Brandon", "Brian", "Carter", "Charles", "Charlie",
    "Christian", "Christopher", "Clark", "Cole", "Collins", "Connor", "Crew", "Crystal", "Daniel",
    "David", "Dean", "Edward", "Elizabeth", "Emily", "Eric", "Eva", "Ford", "Frank", "George",
    "Georgia", "Graham", "Grant", "Henry", "Ian", "Jack", "Jacob", "Jake", "James", "Jamie", "Jane",
    "Jason", "Jay", "Jennifer", "Jeremy", "Jessica", "John", "Jonathan", "Jordan", "Joseph",
    "Joshua", "Justin", "Kate", "Kelly", "Kevin", "Kyle", "Laura", "Leon", "Lewis", "Lisa", "Louis",
    "Luke", "Madison", "Marco", "Marcus", "Maria", "Mark", "Martin", "Mary", "Matthew", "Max",
    "Michael", "Michelle", "Morgan", "Patrick", "Paul", "Peter", "Prince", "Rachel", "Richard",
    "River", "Robert", "Roman", "Rose", "Ruby", "Russell", "Ryan", "Samuel", "Sarah", "Scott",
    "Sean", "Simon", "Stephen", "Steven", "Sullivan", "Taylor", "Thomas", "Tyler", "Victoria",
    "Warren", "William",
)  # fmt: skip
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
BABA = (
    "Then, {B} and {A} went to the {place}. {B} gave a {object} to",
    "Then, {B} and {A} had a lot of fun at the {place}. {B} gave a {object} to",
    "Then, {B} and {A} were working at the {place}. {B} decided to give a {object} to",
    "Then, {B} and {A} were thinking about going to the {place}. {B} wanted to give a {object} to",
    "Then, {B} and {A} had a long argument, and afterwards {B} said to",
    "After {B} and {A} went to the {place}, {B} gave a {object} to",
    "When {B} and {A} got a {object} at the {place}, {B} decided to give it to",
    "When {B} and {A} got a {object} at the {place}, {B} decided to give the {object} to",
    "While {B} and {A} were working at the {place}, {B} gave a {object} to",
    "While {B} and {A} were commuting to the {place}, {B} gave a {object} to",
    "After the lunch, {B} and {A} went to the {place}. {B} gave a {object} to",
    "Afterwards, {B} and {A} went to the {place}. {B} gave a {object} to",
    "Then, {B} and {A} had a long argument. Afterwards {B} said to",
    "The {place} {B} and {A} went to had a {object}. {B} gave it to",
    "Friends {B} and {A} found a {object} at the {place}. {B} gave it to",
)
"""{A} receives, and is the answer; {B} gives."""
ABBA = tuple(one.replace("{B} and {A}", "{A} and {B}") for one in BABA)
TEMPLATES = tuple(chain.from_iterable(zip(BABA, ABBA, strict=True)))
"""Both by turns, so that the first few prompts are of both."""


def ioi(
    tokenizer: Tokenizer, count: int, *, counterfactual: Counterfactual = "io",
    half: Literal[0, 1] = 0, seed: int = 0,
) -> Task:  # fmt: skip
    """Prompts with their counterfactuals; every name is one token of this tokenizer.

    Args:
        tokenizer: The LM's tokenizer.
        count: Number of prompts.
        counterfactual: `io`: the receiver becomes a third name, which is the wrong answer (the
            paper). `s2`: the second mention of the giver becomes the receiver, who then gives.
            `abc`: all three mentions become other names. In these two the giver is the wrong
            answer.
        half: Half of the names that they are made of: the two share no name.
        seed: Seed of the draws.

    Raises:
        ConfigError: If the tokenizer has fewer than ten such names in this half.
    """
    ids = single_tokens(tokenizer, NAMES)
    names = list(ids)[half::2]
    if len(names) < 10:
        raise ConfigError(
            f"This LM's tokenizer has {len(names)} of {len(NAMES)} first names as one token; the "
            "task needs ten in each half. Choose another LM, or give prompts of your own (a JSONL "
            "file)."
        )
    drawn = random.Random(f"{seed} {half}")
    return Task(
        f"ioi ({counterfactual})",
        tuple(
            _prompt(tokenizer, ids, drawn, names, TEMPLATES[i % len(TEMPLATES)], counterfactual)
            for i in range(count)
        ),
    )


def _prompt(
    tokenizer: Tokenizer, ids: dict[str, int], drawn: random.Random, names: list[str],
    template: str, counterfactual: Counterfactual,
) -> Prompt:  # fmt: skip
    io, s, *others = drawn.sample(names, 5)
    rest = {"place": drawn.choice(PLACES), "object": drawn.choice(OBJECTS)}
    tokens = ids_of(tokenizer, template.format(A=io, B=s, **rest))
    giver = [i for i, token in enumerate(tokens) if token == ids[s]]
    places = {"IO": tokens.index(ids[io]), "S1": giver[0], "S2": giver[-1], "end": len(tokens) - 1}
    wrong = s
    if counterfactual == "io":
        changed, wrong = {"IO": others[0]}, others[0]
    elif counterfactual == "s2":
        changed = {"S2": io}
    else:
        changed = dict(zip(("IO", "S1", "S2"), others, strict=True))
    patch = list(tokens)
    for place, name in changed.items():
        patch[places[place]] = ids[name]
    return Prompt(tokens, ids[io], ids[wrong], tuple(patch), places, group=template)
