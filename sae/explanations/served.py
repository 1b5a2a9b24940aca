"""Surprisal and simulation by an LM behind a server that gives log-probabilities of prompts.

The server's own tokenizer cuts the texts: prompts and excerpts are sent as text, and places are
found again by the texts of the server's tokens.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae.chat.desk import Desk
from sae.chat.messages import Echo, Failure, Reply
from sae.errors import ConfigError, SourceError
from sae.explanations.scores import Bench
from sae.explanations.simulation import Simulations
from sae.explanations.surprisal import SIDE, Surprisals
from sae.language.pieces import pieces

_TEST = "The capital of France is Paris."
_NUMBERS = 10
"""0 to 9: many tokenizers cut 10 in two."""
_HALF = "\ufffd"
_TOP = 15
"""Likeliest tokens among which numbers are looked for, as in Bills et al. 2023."""
_UNKNOWN = "unknown"
TIMES = 3
"""Times as many tokens, about, as an LM of this process reads: each excerpt brings its prompt."""


class Read(NamedTuple):
    """Tokens of a text as a server read them.

    Args:
        offset: Characters before each token.
        log_prob: Its log-probability given all before it; NaN of the first one.
        top: Log-probabilities of the likeliest tokens at its place, by their texts.
    """

    offset: Int[np.ndarray, " tokens"]
    log_prob: Float[np.ndarray, " tokens"]
    top: Sequence[dict[str, float]]


def read_of(reply: Reply, text: str, top: bool = False) -> Read:
    """The tokens of a reply to an `Echo`, without those that the server wrote behind the text.

    Args:
        reply: The reply.
        text: The text that was sent.
        top: True if the reply must hold the likeliest tokens.

    Raises:
        Failure: If the reply does not tell the tokens of the text.
    """
    try:
        found: Any = json.loads(reply.text)
        offset = np.array(offsets(found["tokens"], text))
        inside = len(offset)
        given = found["token_logprobs"][:inside]
        log_prob = np.array([np.nan if one is None else float(one) for one in given])
        likeliest: list[dict[str, float]] = [
            {word: float(p) for word, p in (one or {}).items()}
            for one in (found.get("top_logprobs") or [])[:inside]
        ]
        finite = [p for one in likeliest for p in one.values()] + log_prob[1:].tolist()
        told = len(log_prob) == inside > 1 and bool(np.isfinite(finite).all())
        told &= not top or (len(likeliest) == inside and any(likeliest))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        told = False
    if not told:
        raise Failure("the server's answer tells no log-probabilities of the prompt", lasting=True)
    return Read(offset, log_prob, likeliest)


def offsets(tokens: Sequence[str], text: str) -> list[int]:
    """Characters of a text before each of its tokens; -1 for a special one in front.

    Servers count characters in several ways, so this searches for the tokens' own texts. A token
    may have lost the blank before it, and one that is part of a character has no text of its own.

    Raises:
        ValueError: If the tokens are not those of the text.

    Example:
        >>> offsets(["<s>", "The", " sun", "."], "The sun."), offsets(["The", "sun"], "The sun")
        ([-1, 0, 3, 7], [0, 3])
    """
    found: list[int] = []
    at, loose = 0, 0
    for piece in tokens:
        if at >= len(text):
            break  # the server wrote the rest
        words = piece.strip(_HALF)
        start = text.find(words, at) if words else at
        if not found and not text.startswith((words, f" {words}")):
            found.append(-1)
            continue
        gap = text[at:start]
        if start < 0 or (gap and gap != " " and len(gap) > loose):
            if loose and at + loose >= len(text):
                break  # the text ends with half a character, and the server wrote this
            raise ValueError(f"{piece!r} is not at {at} of the text")
        found.append(start if loose and words else at)
        if words:
            at, loose = start + len(words), 0
        if words != piece or not words:
            loose += 1  # half a character: the next token begins at most as many further on
    if at + loose < len(text):
        raise ValueError("the tokens end before the text does")
    return found


def require_log_probs(desk: Desk) -> None:
    """Find out by one request whether a server gives log-probabilities of prompts.

    Raises:
        ConfigError: If it does not.
    """
    said, request = "see the warning above", Echo(_TEST, _TOP)
    try:
        (reply,) = desk.ask("log-probabilities?", [request])
        if isinstance(reply, Reply):
            read_of(reply, _TEST, top=True)
            return
        if reply == "unasked":
            said = "eval.autointerp.chat.budget is too small to ask"
    except (Failure, SourceError) as error:
        said = str(error)
        desk.ledger.forget(request)  # the server may be another one by then
    raise ConfigError(
        f"{desk.client.identity['base_url']} gives no log-probabilities of prompts ({said}). "
        "/completions of vLLM does, chat services mostly do not. Leave "
        "eval.autointerp.chat.log_probs out: then the LM under study is asked."
    )


def _reads(desk: Desk, what: str, texts: Sequence[str], top: int = 0) -> list[Read | None]:
    """The tokens of texts; None where there was no reply, or none that tells them."""
    found: list[Read | None] = []
    for text, reply in zip(texts, desk.ask(what, [Echo(t, top) for t in texts]), strict=True):
        try:
            found.append(read_of(reply, text, top > 0) if isinstance(reply, Reply) else None)
        except Failure:
            found.append(None)
    return found


class ServedSurprisal(Surprisals):
    """`Surprisals` by a server.

    Args:
        desk: Asks it.
        bench: Source of the excerpts.
    """

    def __init__(self, desk: Desk, bench: Bench):
        super().__init__(bench)
        self._desk = desk

    def likelihoods(self, prompt: str, middle: Int[np.ndarray, " n"]) -> np.ndarray:
        """See `Surprisals`; NaN without a reply. A token that begins in the prompt is left out."""
        texts = [prompt + one for one in self._bench.text.excerpts(middle, SIDE)]
        found = []
        for one in _reads(self._desk, "surprisal", texts):
            own = [] if one is None else one.log_prob[one.offset >= len(prompt)]
            found.append(np.mean(own) if len(own) else np.nan)
        return np.array(found)


class ServedSimulation(Simulations):
    """`Simulations` by a server, on the scale 0 to 9.

    Numbers are looked for among the 15 likeliest tokens at each place; without any, the simulated
    activation is 0.

    Args:
        desk: Asks it.
        bench: The test text.
    """

    def __init__(self, desk: Desk, bench: Bench):
        super().__init__(bench, _NUMBERS - 1)
        self._desk = desk

    def simulated(
        self, words: str, places: Int[np.ndarray, "fragments length"]
    ) -> Float[np.ndarray, "fragments length"]:
        """See `Simulations`; NaN of a fragment without a reply."""
        prompt, texts, at = self.prompt(words), [], []
        for tokens in self._bench.text.tokens[places].tolist():
            text, own = prompt, []
            for piece in pieces(tokens, self._bench.text.vocabulary):
                text += f"{piece}\t"
                own.append(len(text))
                text += f"{_UNKNOWN}\n"
            texts.append(text)
            at.append(own)
        found = np.full(places.shape, np.nan)
        reads = _reads(self._desk, "simulation", texts, _TOP)
        for row, own, one in zip(found, at, reads, strict=True):
            if one is not None:
                row[:] = [self._number(one, place) for place in own]
        return found

    def _number(self, read: Read, place: int) -> float:
        """Mean of the numbers under their probabilities where a character stands."""
        token = int(np.flatnonzero(read.offset <= place)[-1])
        numbers = {str(i): i for i in range(self.top + 1)}
        found = [
            (numbers[word.strip()], np.exp(min(0.0, log_prob)))
            for word, log_prob in read.top[token].items()
            if word.strip() in numbers
        ]
        total = sum(p for _, p in found)
        return float(sum(n * p for n, p in found) / total) if total else 0.0
