"""Explainers: what a latent means, in words, out of the training text or its weights alone."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from sae.chat.desk import Desk, Unanswered
from sae.explanations.budget import Budget
from sae.explanations.excerpts import PlacedText
from sae.explanations.latents import Latent, Reader
from sae.explanations.rules import Rule, RuleText
from sae.registry import Registry

TOP_CONTEXTS = 20
"""Strongest contexts that the most frequent token is counted in."""
_RAISED = 10
Unexplained = Unanswered | Literal["unparsed", "refused", "not given"]
"""Reasons why there is no explanation: none was found or the chat LM did not reply (`failed`), it
was not asked, its reply holds no explanation, it will not explain, or the user's file has none."""


class Explanation(NamedTuple):
    """Meaning of a latent, in words.

    Args:
        words: The explanation, for people and for the encoder.
        rule: The rule that the words state; None if they state none.
    """

    words: str
    rule: Rule | None = None


class TrainingText:
    """The text that explainers read.

    Args:
        of: The training text.
        rules: Its properties.
    """

    def __init__(self, of: PlacedText, rules: RuleText):
        assert of.text.is_training, "explainers never read the test text"
        self.of, self.rules = of, rules

    def peaks(self, latent: Latent) -> Int[np.ndarray, " contexts"]:
        """The place of the largest activation of each context, the strongest context first."""
        place, value = latent.train
        order = place[np.argsort(-value, kind="stable")]
        _, first = np.unique(order // self.of.ctx, return_index=True)
        return order[np.sort(first)]


class Explainer(ABC):
    """Puts latents into words.

    Args:
        text: The training text.
        reader: Gives activations on changed text, which some explainers need.
        budget: Tokens that an LM may read for it; None: as many as it takes.
    """

    name: ClassVar[str]

    def __init__(
        self, text: TrainingText, reader: Reader | None = None, budget: Budget | None = None
    ):
        self.text, self.reader, self.budget = text, reader, budget or Budget()

    @abstractmethod
    def explained(
        self, latents: Sequence[Latent], desk: Desk | None
    ) -> list[Explanation | Unexplained]:
        """An explanation of each latent, or the reason why there is none.

        Args:
            latents: Latents to explain.
            desk: Sends requests to the chat LM, if there is one.
        """


class OneByOne(Explainer):
    """Puts each latent into words by itself."""

    def explained(
        self, latents: Sequence[Latent], desk: Desk | None
    ) -> list[Explanation | Unexplained]:
        """The explanations; `failed` where there is none."""
        return [self.explain(latent) or "failed" for latent in latents]

    @abstractmethod
    def explain(self, latent: Latent) -> Explanation | None:
        """The explanation; None where there is none."""


EXPLAINERS: Registry[type[Explainer]] = Registry("eval.autointerp.explainers", "name")


@EXPLAINERS.register("rules")
class Rules(OneByOne):
    """The rule of largest F1 on the training text."""

    def explain(self, latent: Latent) -> Explanation | None:
        """The rule in words."""
        found = self.text.rules.best(latent.train.row)
        return Explanation(found[0].words, found[0]) if found else None


@EXPLAINERS.register("tokens")
class Tokens(OneByOne):
    """A control: the token on which the latent is strongest in most of its top contexts."""

    def explain(self, latent: Latent) -> Explanation | None:
        """The token in words; of equally frequent ones the strongest."""
        peaks = self.text.peaks(latent)[:TOP_CONTEXTS]
        if not len(peaks):
            return None
        ((token, _),) = Counter(self.text.of.tokens[peaks].tolist()).most_common(1)
        word = self.text.of.vocabulary[token].decode(errors="replace")
        words = f'the token "{word}"'
        return Explanation(words, Rule("token", (f'"{word}"',), words))


@EXPLAINERS.register("output")
class Output(OneByOne):
    """The tokens whose logits the atom raises most (`direct_logits`)."""

    def explain(self, latent: Latent) -> Explanation | None:
        """The tokens, separated by commas."""
        words = [word.strip() for word in latent.raised[:_RAISED]]
        listed = ", ".join(dict.fromkeys(filter(None, words)))
        return Explanation(listed) if listed else None
