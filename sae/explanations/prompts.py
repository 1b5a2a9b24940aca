"""Prompts of explainers and judges, and parsers of the replies.

After delphi (arXiv 2410.13928; marked excerpts, detection, fuzzing) and Bills et al. 2023 (pairs of
tokens and activations), in words of our own.
"""

import re
from collections.abc import Iterator, Sequence

from sae.chat.messages import Request, without_thoughts

_EXPLANATION = re.compile(r"\[EXPLANATION\]\s*:?\s*(.+)", re.DOTALL | re.IGNORECASE)
_FINDS = "the main thing this neuron does is find"
_VERDICTS = re.compile(r"\[\s*([01](?:\s*,\s*[01])*)\s*\]")
_LONGEST_WORDS = 400
_EXPLAIN_TOKENS = 150
_VERDICT_TOKENS = 30

_CONTEXTS = """\
You study the features of a language model. You get excerpts of text in which one feature is \
active. The tokens on which it is active stand between << and >>. After each excerpt follow these \
tokens with the strength of the feature, from 1 to 10.
Find what the marked tokens and their contexts have in common. Write one short phrase. Leave out \
the marks, do not list the examples, and do not describe what most excerpts do not show.
The last line of your answer is: [EXPLANATION]: followed by the phrase."""
_CONTEXTS_SHOT = (
    "Excerpt 1: he went home<< because>> it rained\nStrengths: ( because: 9)\n"
    "Excerpt 2: late<< since>> the train broke down\nStrengths: ( since: 6)",
    "[EXPLANATION]: conjunctions that introduce a reason",
)
_PAIRS = """\
We study neurons in a neural network. Each neuron looks for one thing in short documents. Look at \
the parts of the documents on which the neuron activates, and summarise in one short phrase what \
it looks for. Do not list examples of words. The format is token<tab>activation; activations go \
from 0 to 10, and 0 means that the neuron finds nothing there."""
_PAIRS_SHOT = (
    f"Neuron 1\nActivations:\n<start>\nthe\t0\n red\t9\n car\t0\n<end>\n\nExplanation of neuron 1: "
    f"{_FINDS}",
    "words for colours",
)
_DETECTION = """\
You get a description of a feature of text, and numbered excerpts. For each excerpt, say whether \
the feature is in it. Answer by a list alone, with 1 for yes and 0 for no, one number for each \
excerpt in order, between [ and ]."""
_FUZZING = """\
You get a description of a feature of text, and numbered excerpts in which some tokens stand \
between << and >>. For each excerpt, say whether the marked tokens are those that the description \
means. Answer by a list alone, with 1 for yes and 0 for no, one number for each excerpt in order, \
between [ and ]."""
_SHOTS = {
    "detection": (
        ("names of colours", ("a red car stopped", "they ran home", "the sky is blue today"),
         "[1, 0, 1]"),
    ),
    "fuzzing": (
        ("names of colours", ("a<< red>> car stopped", "they<< ran>> home", "the<< sky>> is blue"),
         "[1, 0, 0]"),
    ),
}  # fmt: skip
_RULES = {"detection": _DETECTION, "fuzzing": _FUZZING}


def of_contexts(excerpts: Sequence[tuple[str, Sequence[tuple[str, int]]]]) -> Request:
    """Ask for the meaning of marked tokens.

    Args:
        excerpts: Marked texts, with the active tokens and their strengths of each.
    """
    shown = "\n".join(
        f"Excerpt {i}: {text}\nStrengths: {', '.join(f'({t}: {s})' for t, s in strengths)}"
        for i, (text, strengths) in enumerate(excerpts, 1)
    )
    ask, answer = _CONTEXTS_SHOT
    return Request(
        (("system", _CONTEXTS), ("user", ask), ("assistant", answer), ("user", shown)),
        _EXPLAIN_TOKENS,
    )


def in_contexts(reply: str) -> str | None:
    r"""The phrase behind the last `[EXPLANATION]:`; None without one.

    Example:
        >>> in_contexts("They differ.\n[EXPLANATION]: names of <b>rivers")
        'names of <b>rivers'
    """
    reply = without_thoughts(reply)
    found = _EXPLANATION.search(reply, max(0, reply.upper().rfind("[EXPLANATION]")))
    return None if found is None else _phrase(found[1])


def of_pairs(excerpts: Sequence[Sequence[tuple[str, int]]]) -> Request:
    """Ask for the meaning of tokens with activations of 0 to 10.

    Where fewer than a fifth of the tokens are active, these are listed once more.
    """
    parts = ["Neuron 2\nActivations:\n" + _listed(excerpts)]
    every = [pair for excerpt in excerpts for pair in excerpt]
    active = [[pair for pair in excerpt if pair[1]] for excerpt in excerpts]
    if 5 * sum(map(len, active)) < len(every):
        parts.append("The same without zeros:\n" + _listed(active))
    parts.append(f"Explanation of neuron 2: {_FINDS}")
    ask, answer = _PAIRS_SHOT
    return Request(
        (("system", _PAIRS), ("user", ask), ("assistant", answer), ("user", "\n\n".join(parts))),
        60,
    )


def in_pairs(reply: str) -> str | None:
    """The phrase that ends "the main thing this neuron does is find"; None without one.

    Example:
        >>> in_pairs("The main thing this neuron does is find words for colours.")
        'words for colours.'
    """
    head, found, tail = without_thoughts(reply).partition("this neuron does is find")
    return _phrase((tail if found else head).strip().partition("\n")[0])


def of_judge(kind: str, words: str, excerpts: Sequence[str]) -> Request:
    """Ask which excerpts fit an explanation.

    Args:
        kind: `detection` or `fuzzing`.
        words: The explanation.
        excerpts: Marked for `fuzzing`.
    """
    turns = [
        turn for shot, texts, verdict in _SHOTS[kind]
        for turn in (("user", _judged(shot, texts)), ("assistant", verdict))
    ]  # fmt: skip
    asked = ("user", _judged(words, excerpts))
    return Request((("system", _RULES[kind]), *turns, asked), _VERDICT_TOKENS)  # type: ignore[arg-type]


def verdicts(reply: str, count: int) -> list[bool] | None:
    """The last list of zeros and ones; None unless it is as long as there were excerpts.

    Example:
        >>> verdicts("Sure: [1, 0]", 2), verdicts("[1, 0, 1]", 2), verdicts("yes", 2)
        ([True, False], None, None)
    """
    found = _VERDICTS.findall(without_thoughts(reply))
    listed = [one.strip() == "1" for one in found[-1].split(",")] if found else []
    return listed if len(listed) == count else None


def _judged(words: str, excerpts: Sequence[str]) -> str:
    return "\n".join([f"Description: {words}", *_numbered(excerpts)])


def _numbered(excerpts: Sequence[str]) -> Iterator[str]:
    for i, text in enumerate(excerpts, 1):
        yield f"Excerpt {i}: {' '.join(text.split())}"


def _listed(excerpts: Sequence[Sequence[tuple[str, int]]]) -> str:
    return "\n".join(
        "\n".join(["<start>", *(f"{token}\t{value}" for token, value in one), "<end>"])
        for one in excerpts
    )


def _phrase(text: str) -> str | None:
    """Words in one line, without what a terminal would obey; None if there are none."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:_LONGEST_WORDS] or None
