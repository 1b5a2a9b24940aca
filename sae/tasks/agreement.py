"""Subject-verb agreement with and without a distractor, after Marks et al. (arXiv 2403.19647)."""

import logging
import random
from itertools import cycle, islice, product
from typing import Literal

from sae.errors import ConfigError
from sae.language.text import Tokenizer
from sae.tasks.task import Prompt, Task, ids_of, single_tokens

log = logging.getLogger(__name__)

NOUNS = (
    ("boy", "boys"), ("girl", "girls"), ("teacher", "teachers"), ("farmer", "farmers"),
    ("doctor", "doctors"), ("lawyer", "lawyers"), ("writer", "writers"), ("singer", "singers"),
    ("student", "students"), ("driver", "drivers"), ("manager", "managers"), ("friend", "friends"),
    ("pilot", "pilots"), ("worker", "workers"), ("officer", "officers"), ("player", "players"),
    ("author", "authors"), ("guest", "guests"), ("leader", "leaders"), ("artist", "artists"),
    ("parent", "parents"), ("king", "kings"), ("horse", "horses"), ("dog", "dogs"),
)  # fmt: skip
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
TEMPLATES = (
    "Yesterday the {noun}", "Last week the {noun}", "They say that the {noun}",
    "Last week the {noun} near the {other}", "They say that the {noun} with the {other}",
    "Yesterday the {noun} that the {other} liked",
)  # fmt: skip

_DRAWS = 20
"""Draws for each prompt that is asked for, of which those that are new are kept."""


def agreement(tokenizer: Tokenizer, count: int, *, half: Literal[0, 1] = 0, seed: int = 0) -> Task:
    """Prompts that end before a verb; the counterfactual has the subject in the other number.

    Nouns and verbs are single tokens. The distractor is of either number.

    Args:
        tokenizer: The LM's tokenizer.
        count: Most prompts; no two are equal, so few nouns may give fewer, with a warning.
        half: Half of the nouns that are subjects: the two share none.
        seed: Seed of the draws.

    Raises:
        ConfigError: If the tokenizer has too few of the words as one token.
    """
    ids = single_tokens(tokenizer, [word for pair in (*NOUNS, *VERBS) for word in pair])
    nouns = [pair for pair in NOUNS if all(word in ids for word in pair)][half::2]
    verbs = [pair for pair in VERBS if all(word in ids for word in pair)]
    if len(nouns) < 4 or not verbs:
        raise ConfigError(
            f"This LM's tokenizer has {len(nouns)} of the task's nouns and {len(verbs)} of its "
            "verbs as one token; it needs 4 and 1. Choose another LM, or give prompts of your own "
            "(a JSONL file)."
        )
    drawn = random.Random(f"{seed} {half}")
    kinds = cycle(product(TEMPLATES, (0, 1)))
    prompts: dict[tuple[int, ...], Prompt] = {}
    for template, plural in islice(kinds, _DRAWS * count):
        if len(prompts) == count:
            break
        noun, other = drawn.sample(nouns, 2)
        verb = drawn.choice(verbs)
        tokens = ids_of(tokenizer, template.format(noun=noun[plural], other=drawn.choice(other)))
        place = tokens.index(ids[noun[plural]])
        patch = (*tokens[:place], ids[noun[1 - plural]], *tokens[place + 1 :])
        places = {"subject": place, "end": len(tokens) - 1}
        right, wrong = ids[verb[plural]], ids[verb[1 - plural]]
        prompt = Prompt(tokens, right, wrong, patch, places, template, plural)
        prompts.setdefault(tokens, prompt)  # a prompt that stands twice says nothing new
    if len(prompts) < count:
        log.warning(
            "agreement: %d prompts in place of %d: few more can be made of %d nouns",
            len(prompts), count, len(nouns),
        )  # fmt: skip
    return Task("agreement", tuple(prompts.values()))
