"""Surprisal and simulation by an LM behind a server that gives log-probabilities of prompts.

The server's own tokenizer cuts the texts: prompts and excerpts are sent as text, and places are
found again by the characters at which the server's tokens begin.
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
_NUMBERS = 11
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


def read_of(reply: Reply, text: str) -> Read:
    """The tokens of a reply to an `Echo`, without those that the server wrote behind the text.

    Raises:
        Failure: If the reply does not tell the tokens of the text.
    """
    try:
        found: Any = json.loads(reply.text)
        offset = np.array(found["text_offset"], dtype=np.int64)
        log_prob = np.array(
            [np.nan if one is None else float(one) for one in found["token_logprobs"]]
        )
        top: list[dict[str, float]] = [dict(one or {}) for one in found.get("top_logprobs") or ()]
        offset = offset - offset[0]  # some count what came before
        inside = int((offset < len(text)).sum())
        told = inside == len(log_prob[:inside]) > 1 and np.isfinite(log_prob[1:inside]).all()
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        told = False
    if not told:
        raise Failure("the server's answer tells no log-probabilities of the prompt", lasting=True)
    return Read(offset[:inside], log_prob[:inside], top[:inside])


def require_log_probs(desk: Desk) -> None:
    """Find out by one request whether a server gives log-probabilities of prompts.

    Raises:
        ConfigError: If it does not.
    """
    said = "see the warning above"
    try:
        (reply,) = desk.ask("log-probabilities?", [Echo(_TEST, _TOP)])
        if isinstance(reply, Reply):
            read_of(reply, _TEST)
            return
    except (Failure, SourceError) as error:
        said = str(error)
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
            found.append(read_of(reply, text) if isinstance(reply, Reply) else None)
        except Failure:
            found.append(None)
    return found


class ServedSurprisal(Surprisals):
    """`Surprisals` by a server.

    Args:
        desk: Asks it.
        bench: Where excerpts come from.
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
    """`Simulations` by a server, on the scale 0 to 10.

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
            if one is not None and len(one.top) == len(one.offset):
                row[:] = [self._number(one, place) for place in own]
        return found

    def _number(self, read: Read, place: int) -> float:
        """Mean of the numbers under their probabilities where a character stands."""
        token = int(np.searchsorted(read.offset, place, side="right")) - 1
        numbers = {str(i): i for i in range(self.top + 1)}
        found = [
            (numbers[word.strip()], np.exp(log_prob))
            for word, log_prob in read.top[token].items()
            if word.strip() in numbers
        ]
        total = sum(p for _, p in found)
        return float(sum(n * p for n, p in found) / total) if total else 0.0
