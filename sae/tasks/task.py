"""Tasks: prompts with a right and a wrong next token, and the check that an LM can do them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.counted import Counted
from sae.errors import ConfigError
from sae.language.lm import LanguageModel
from sae.language.text import Tokenizer, separator_id, tokenise
from sae.provenance import content_key
from sae.types import Point

LEAST_ACCURACY = 0.7
"""Share of a task's prompts that an LM should have right, or there is nothing to explain."""


@dataclass(frozen=True)
class Prompt:
    """A text that ends before an answer.

    Args:
        tokens: Token ids. The document separator comes first: token 0 is a sink, no edit touches
            it, so it must not be a word of the text.
        right: Token id of the answer.
        wrong: Token id of the answer that it is held against.
        patch: The counterfactual, as many tokens; empty where there is none.
        places: Positions of words that matter.
        group: Template, name or whatever else prompts have in common.
        label: Class of a concept, such as the gender of a name.
    """

    tokens: tuple[int, ...]
    right: int
    wrong: int
    patch: tuple[int, ...] = ()
    places: Mapping[str, int] = field(default_factory=dict)
    group: str = ""
    label: int = 0


class Batch(NamedTuple):
    """Prompts side by side.

    Shorter ones are filled with document separators on the right, which a causal LM does not see
    before it comes to them.

    Args:
        index: Their numbers in the task.
        tokens: Token ids.
        patch: Tokens of the counterfactuals; equal to `tokens` where there are none.
        end: Position of the last token of each.
        right: Ids of the right answers.
        wrong: Ids of the wrong answers.
    """

    index: Int[Tensor, " prompts"]
    tokens: Int[Tensor, "prompts ctx"]
    patch: Int[Tensor, "prompts ctx"]
    end: Int[Tensor, " prompts"]
    right: Int[Tensor, " prompts"]
    wrong: Int[Tensor, " prompts"]

    def at_end(self, found: Float[Tensor, "prompts ctx d"]) -> Float[Tensor, "prompts d"]:
        """Rows at the last token of each prompt."""
        return found[torch.arange(len(found), device=found.device), self.end.to(found.device)]

    def difference(self, logits: Float[Tensor, "prompts vocab"]) -> Float[Tensor, " prompts"]:
        """Logit of the right answer less that of the wrong one; of logits at the ends."""
        logits = logits.float()
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, self.right.to(rows.device)] - logits[rows, self.wrong.to(rows.device)]


@dataclass(frozen=True)
class Task:
    """Prompts of one kind.

    Args:
        name: Name to show to people.
        prompts: The prompts.
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def key(self) -> str:
        """Changes when a prompt does."""
        return content_key({"prompts": [asdict(prompt) for prompt in self.prompts]})

    def batches(self, size: int) -> Iterator[Batch]:
        """Prompts in batches of at most `size`, in their order."""
        for start in range(0, len(self.prompts), size):
            those = self.prompts[start : start + size]
            yield Batch(
                torch.arange(start, start + len(those)),
                _filled([one.tokens for one in those]),
                _filled([one.patch or one.tokens for one in those]),
                torch.tensor([len(one.tokens) - 1 for one in those]),
                torch.tensor([one.right for one in those]),
                torch.tensor([one.wrong for one in those]),
            )

    @torch.no_grad()
    def check(
        self, lm: LanguageModel, point: Point, counted: Counted | None, *,
        least: float, batch_prompts: int = 16,
    ) -> Float[Tensor, " prompts"]:  # fmt: skip
        """Find out, before anything is measured, whether an LM can do the task.

        Args:
            lm: The LM.
            point: Point where activations will be edited.
            counted: Rule for the rows that count there; None: all.
            least: Smallest share of right answers.
            batch_prompts: Prompts in a pass.

        Returns:
            Logit of the right answer less that of the wrong one, for each prompt.

        Raises:
            ConfigError: If a place is a row that does not count, which no edit touches, or the LM
                gives too few right answers.
        """
        differences = torch.zeros(len(self))
        for batch in self.batches(batch_prompts):
            if counted is not None:
                for tokens in (batch.tokens, batch.patch):
                    x = lm.capture(tokens, [point])[point]
                    counts = counted.at([point]).mask([x], tokens.to(x.device)).cpu()
                    self.require_counted(batch.index, counts, 0, point)
            logits = batch.at_end(lm.logits(batch.tokens))
            differences[batch.index] = batch.difference(logits).cpu()
        share = float((differences > 0).float().mean())
        if share < least:
            raise ConfigError(
                f"{lm.name} gives the right answer in {share:.0%} of the {len(self)} prompts of "
                f"{self.name}; at least {least:.0%} is asked, or there is nothing to explain. "
                "Choose another task or LM."
            )
        return differences

    def require_counted(
        self, index: Int[Tensor, " some"], counts: Bool[Tensor, "some new"], start: int,
        point: Point,
    ) -> None:  # fmt: skip
        """Refuse prompts with a place whose row does not count, which no edit touches.

        Args:
            index: Numbers of the prompts.
            counts: Mask of their rows that count.
            start: Position of the first of these rows; places before it are not looked at.
            point: Point that the rows are of.

        Raises:
            ConfigError: If there is such a place.
        """
        for i, row in zip(index.tolist(), counts, strict=True):
            for word, position in self.prompts[i].places.items():
                if position == 0 or (position >= start and not row[position - start]):
                    raise ConfigError(
                        f"{self.name}: {word} of prompt {i} is token {position} "
                        f"({self.prompts[i].tokens[position]}), whose row at {point} does not "
                        "count (a special token or a massive activation): no edit would touch it. "
                        "Put other words before it, or choose another layer."
                    )


def _filled(rows: Sequence[tuple[int, ...]]) -> Int[Tensor, "prompts ctx"]:
    """Rows filled to one length with what they start with, the document separator."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *row[:1] * (longest - len(row))] for row in rows])


def ids_of(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, behind the document separator."""
    return (separator_id(tokenizer), *tokenise(tokenizer, [text])[0])


def single_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> dict[str, int]:
    """The words that are one token behind a space, with their ids."""
    read = _ids_inside(tokenizer, [f" {word}" for word in words])
    return {word: ids[0] for word, ids in zip(words, read, strict=True) if len(ids) == 1}


def one_token(tokenizer: Tokenizer, word: str) -> int:
    """The id of a word that is one token.

    Raises:
        ConfigError: If it is several, or none.
    """
    (ids,) = _ids_inside(tokenizer, [word])
    if len(ids) != 1:
        raise ConfigError(
            f"{word!r} is {len(ids)} tokens for this LM; an answer must be one. Choose another "
            "word, and mind the space before it."
        )
    return int(ids[0])


def _ids_inside(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Token ids of words inside a text: some tokenizers put a space before a text's first word."""
    (start,) = tokenise(tokenizer, ["\n"])
    return [list(ids[len(start) :]) for ids in tokenise(tokenizer, [f"\n{w}" for w in words])]
