"""Simulation: an LM predicts activations from the explanation, as the paper scored its features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sae.errors import ConfigError
from sae.explanations.excerpts import marked
from sae.explanations.explainers import Explanation
from sae.explanations.latents import Latent
from sae.explanations.log_probs import Asked, LMJudge, LogProbs
from sae.explanations.scores import LEAST, Bench, Scores
from sae.features.firings import Firings

FRAGMENT = 64
"""Tokens in a fragment, or a whole context where that is shorter."""
TOP, RANDOM = (2, 6, 10, 14, 18), 5
"""Ranks of the strongest fragments that are scored, and the number of others in which it fires."""
MODES = ("simulation", "simulation_top", "simulation_random")
_INTRODUCTION = (
    "Each neuron looks for one thing in a short text. Read what the neuron looks for and predict "
    "its activation on each token.\n\nA line is token<tab>activation. Activations go from 0 to {}; "
    "unknown is an activation that is not known. Most are 0.\n"
)
_NEURON = "\n\nNeuron {}\nThis neuron looks for {}\nActivations:\n<start>\n"
_END = "<end>\n"
_WORKED: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = (
    ("words about the weather", (
        ("The", 0), (" rain", 10), (" kept", 0), (" us", 0), (" in", 0), (" until", 0),
        (" the", 0), (" sun", 8), (" came", 0), (" out", 0), (".", 0),
    )),
    ('the word "and"', (
        (" bread", 0), (" and", 10), (" butter", 0), (",", 0), (" tea", 0), (" and", 10),
        (" milk", 0), (" for", 0), (" four", 0),
    )),
)  # fmt: skip
"""Worked examples of our own: explanation, tokens and activations from 0 to 10."""
TOKENS = 2 * ((len(TOP) + RANDOM) * (4 * FRAGMENT + 1) + 300)
"""Tokens that an explanation and another latent's take, about."""


class Scale(NamedTuple):
    """The activations that the judge can say in one token.

    Args:
        top: The largest, 10 or 9.
        ids: Tokens of 0 to `top`.
    """

    top: int
    ids: tuple[int, ...]


def scale_of(judge: LMJudge) -> Scale:
    """The scale 0 to 10, or 0 to 9 where "10" is not one token.

    Raises:
        ConfigError: If a digit is not one token.
    """
    tab = len(judge.ids("\t"))
    ids = [judge.ids(f"\t{number}")[tab:] for number in range(11)]
    if any(len(one) != 1 for one in ids[:10]):
        raise ConfigError(
            "The judge LM has no single tokens for the digits, which simulation needs. Leave "
            "simulation out of eval.autointerp.scorers."
        )
    top = 10 if len(ids[10]) == 1 else 9
    return Scale(top, tuple(one[0] for one in ids[: top + 1]))


class Simulations(ABC):
    """Pearson correlation of simulated and true activations over the tokens of all fragments.

    The judge reads explanation and fragment as lines `token<tab>unknown`, all at once; where
    "unknown" stands, the simulated activation is the mean of the scale under its probabilities,
    divided by their sum. Fragments: of the 20 strongest those of the ranks 2, 6, 10, 14 and 18,
    and 5 others at random in which the latent fires. A simulation that is constant counts as 0.

    Source: arXiv 2309.08600, section 3.1 and appendix A, after Bills et al. 2023 (Language models
    can explain neurons in language models). The worked examples in the prompt are our own, lines
    are put together by token ids, and the probabilities of all numbers count, not of those among
    the 15 likeliest tokens; a server counts as the source does.

    Args:
        bench: The test text.
        top: Largest number that the judge can say in one token.
    """

    tokens = TOKENS

    def __init__(self, bench: Bench, top: int):
        self._bench, self.top = bench, top
        self._length = min(FRAGMENT, bench.text.ctx)
        self._fragments = self._usable()

    def score(
        self, latent: Latent, seed: int, text: Explanation, without: Latent | None = None
    ) -> Scores:
        """Scores of an explanation of a latent; NaN where it fires in fewer than 20 fragments.

        Args:
            latent: The latent.
            seed: Its seed, which decides the random fragments.
            text: The explanation.
            without: Tokens on which this latent fires are left out: the explanation is of it.
        """
        found = Scores(values=dict.fromkeys(MODES, np.nan))
        activation = self._activations(latent.test)
        strongest = activation[self._fragments].max(1, initial=0)
        order = np.argsort(-strongest, kind="stable")[: np.count_nonzero(strongest)]
        if len(order) < LEAST:
            return found
        top = order[list(TOP)]
        others = np.setdiff1d(order, top)
        random = np.random.default_rng([self._bench.seed, seed, 3]).choice(others, RANDOM, False)
        places = self._fragments[np.concatenate([top, random])]
        counts = self._bench.text.counted[places]
        if without is not None:
            counts &= ~marked(self._bench.text, without.test.row)[places]
        simulated = self.simulated(text.words, places)
        constant = 0.0
        for name, part in zip(
            MODES, (slice(None), slice(None, len(TOP)), slice(len(TOP), None)), strict=True
        ):
            kept = counts[part]
            value = pearson(activation[places[part]][kept], simulated[part][kept])
            if kept.any() and np.ptp(simulated[part][kept]) == 0:
                constant, value = 1.0, 0.0
            found.values[name] = value
        if without is None:
            found.values["simulation_constant"] = constant
        return found

    @abstractmethod
    def simulated(
        self, words: str, places: Int[np.ndarray, "fragments length"]
    ) -> Float[np.ndarray, "fragments length"]:
        """Simulated activations of tokens, on the judge's scale; NaN where there is none."""

    def _usable(self) -> Int[np.ndarray, "fragments length"]:
        """Places of the fragments: of one document, no near duplicate, half of it counts."""
        text, length = self._bench.text, self._length
        starts = np.arange(text.ctx // length) * length
        first = (np.arange(len(text.text.tokens))[:, None] * text.ctx + starts).ravel()
        places = first[:, None] + np.arange(length)
        counted = text.counted[places]
        duplicate = (counted & ~self._bench.allowed[places]).any(1)
        whole = ~np.isin(text.tokens[places], list(text.special)).any(1)
        return places[whole & ~duplicate & (2 * counted.sum(1) >= length)]

    def _activations(self, fired: Firings) -> Float[np.ndarray, " places"]:
        found = np.zeros(len(self._bench.text.tokens))
        found[fired.row] = fired.value
        return found

    def prompt(self, words: str) -> str:
        """All that stands before the lines of a fragment."""
        text = _INTRODUCTION.format(self.top)
        for number, (meaning, lines) in enumerate(_WORKED, 1):
            text += _NEURON.format(number, meaning)
            text += "".join(f"{token}\t{min(a, self.top)}\n" for token, a in lines) + _END
        return text + _NEURON.format(len(_WORKED) + 1, words)


class Simulation(Simulations):
    """`Simulations` by an LM of this process, which reads token ids.

    Args:
        log_probs: The judge's log-probabilities.
        bench: The test text.
    """

    def __init__(self, log_probs: LogProbs, bench: Bench):
        judge = log_probs.judge
        scale = scale_of(judge)
        super().__init__(bench, scale.top)
        self._log_probs, self._numbers = log_probs, scale.ids
        self._tab, self._line = judge.ids("\t"), judge.ids("\n")
        self._unknown = judge.ids("\tunknown")[len(self._tab) :]

    def simulated(
        self, words: str, places: Int[np.ndarray, "fragments length"]
    ) -> Float[np.ndarray, "fragments length"]:
        """See `Simulations`."""
        judge = self._log_probs.judge
        rows = [self._asked(tokens) for tokens in self._bench.text.tokens[places].tolist()]
        found = self._log_probs.of([judge.separator, *judge.ids(self.prompt(words))], rows)
        return np.stack([expected(one) for one in found])

    def _asked(self, tokens: Sequence[int]) -> Asked:
        line = len(self._tab) + len(self._unknown) + len(self._line) + 1
        ids = [i for token in tokens for i in (token, *self._tab, *self._unknown, *self._line)]
        at = [n * line + 1 + len(self._tab) for n in range(len(tokens))]
        # nothing behind the last place that is asked about is read
        return Asked(tuple(ids[: at[-1] + 1]), tuple(at), self._numbers)


def expected(
    log_probs: Float[np.ndarray, "places numbers"],
) -> Float[np.ndarray, " places"]:
    """Mean of the numbers 0, 1, … under their probabilities, divided by their sum.

    Example:
        >>> expected(np.log(np.array([[0.1, 0.3]])))
        array([0.75])
    """
    probabilities = np.exp(log_probs - log_probs.max(1, keepdims=True), dtype=np.float64)
    numbers = np.arange(log_probs.shape[1])
    return probabilities @ numbers / probabilities.sum(1)


def pearson(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Pearson correlation; NaN where one of them is constant.

    Example:
        >>> pearson(np.array([0.0, 1.0, 2.0]), np.array([3.0, 2.0, 1.0]))
        -1.0
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    one, other = first - first.mean(), second - second.mean()
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))
