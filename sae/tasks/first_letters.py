"""Words of an LM's own vocabulary, in prompts that ask for their first letter.

Template, examples in the prompt and the choice of tokens are those of SAEBench 0.6.0 (Karvonen et
al. 2025, arXiv 2503.09532; the task is of Chanin et al. 2024, arXiv 2409.14507).
"""

import re
from collections.abc import Sequence
from string import ascii_lowercase

import numpy as np

from sae.language.text import Tokenizer, tokenise

LETTERS = ascii_lowercase
_LINE = "{word} has the first letter: {letter}"
_WORD = re.compile(r" ?[a-zA-Z]+")
_SPACES = str.maketrans("Ġ▁", "  ")


def vocabulary_words(tokenizer: Tokenizer) -> list[str]:
    """Tokens of a to z and A to Z alone, maybe behind a space, that a prompt's line starts with.

    A token that the tokenizer would not choose there is left out: its word would be read as others.
    """
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    spelled = [(token.translate(_SPACES), number) for token, number in vocab]
    words = [(word, number) for word, number in spelled if _WORD.fullmatch(word)]
    read = tokenise(tokenizer, [f"\n{word}" for word, _ in words]) if words else []
    return [word for (word, number), ids in zip(words, read, strict=True) if ids[-1] == number]


def first_letter(word: str) -> str:
    """The letter in lower case.

    Example:
        >>> first_letter(" Cat")
        'c'
    """
    return word.strip()[0].lower()


def prompt(word: str, examples: Sequence[str]) -> str:
    r"""Examples with their letters, a line each, and the word; it ends where the word does.

    SAEBench reads the activation at the word's token, six before the end of its template
    `{word} has the first letter:`. A causal LM's activation does not depend on what follows.

    Example:
        >>> prompt(" cat", ["dog"])
        '\ndog has the first letter: D\n cat'
    """
    lines = [_LINE.format(word=one, letter=first_letter(one).upper()) for one in examples]
    return "\n".join(["", *lines, word])


def prompts(words: Sequence[str], num_examples: int, generator: np.random.Generator) -> list[str]:
    """A prompt for each word, its examples drawn from the other words."""
    made = []
    for word in words:
        drawn = generator.choice(len(words), num_examples + 1, replace=False)
        made.append(
            prompt(word, [words[int(i)] for i in drawn if words[int(i)] != word][:num_examples])
        )
    return made
