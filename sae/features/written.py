"""Texts that an LM writes while it is steered, and their scores."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import functional
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.features.steering import BATCH, Arm, intervention
from sae.interventions import intervene
from sae.language.generate import generate
from sae.language.pieces import token_bytes
from sae.language.text import tokenise
from sae.probing.judge import Judge

Grid = Float[np.ndarray, "sizes draws prompts"]


class Written(NamedTuple):
    """Texts under pushes of some sizes, some draws for each prompt.

    Args:
        texts: Written text, without the prompt, by size, draw and prompt.
        tokens: Separator, prompt and text of each.
        ce: Mean cross entropy of the written tokens under the clean LM, in nats.
        distinct: Share of different ones among the three-token sequences.
    """

    texts: list[list[list[str]]]
    tokens: list[list[list[Int[Tensor, " _"]]]]
    ce: Grid
    distinct: Grid


class Scores(NamedTuple):
    """Scores of texts, each from 0 to 2.

    Args:
        concept: The judge's probability of the concept, from .5, which says nothing, to 1.
        fluency: Twice how near the text is to unsteered text in cross entropy and repetition.
        score: Harmonic mean of both; 0 if one is.
    """

    concept: Grid
    fluency: Grid
    score: Grid


class Pen:
    """Writes texts after prompts, a few draws each.

    The seed, the number of the draw and the prompt decide the random numbers, so those of one draw
    are the same in every arm and at every size, and those of two prompts or draws are independent.

    Args:
        one: The SAE, which says where arms act and on which rows.
        prompts: Prompts; a document separator stands before each.
        draws: Texts of each prompt.
        new_tokens: Tokens that are written.
        temperature: 0 takes the likeliest token.
        seed: Seed of the draws.
        batch_texts: Texts that are written at once; decides memory alone.

    Raises:
        ConfigError: If a text would grow longer than the LM allows.
    """

    def __init__(
        self, one: PlacedSAE, prompts: Sequence[str], *, draws: int, new_tokens: int,
        temperature: float, seed: int, batch_texts: int,
    ) -> None:  # fmt: skip
        self.one, self.prompts = one, list(prompts)
        self.draws, self.new_tokens = draws, new_tokens
        self.temperature, self.seed, self.batch_texts = temperature, seed, batch_texts
        self._vocabulary = token_bytes(one.lm.tokenizer)
        self.ids = self.read("")

    def write(self, arm: Arm | None, sizes: Sequence[float], before: str = "") -> Written:
        """Texts after each prompt for each size, with what tells how fluent they are.

        Args:
            arm: The arm; None: the LM is not steered.
            sizes: Sizes of the push.
            before: A text that stands before every prompt. Cross entropies are those without it.
        """
        tokens = self.tokens(arm, sizes, before)
        whole = [text for of_size in tokens for of_draw in of_size for text in of_draw]
        new = [text[-self.new_tokens :] for text in whole]
        shape = len(sizes), self.draws, len(self.prompts)
        return Written(
            _folded([self._text(one) for one in new], shape), tokens,
            self._cross_entropy(whole).reshape(shape),
            np.array([distinct(one.tolist()) for one in new]).reshape(shape),
        )  # fmt: skip

    def texts(self, arm: Arm | None, sizes: Sequence[float]) -> list[list[list[str]]]:
        """The texts of `write` alone: what is written after each prompt, by size and draw."""
        return [
            [[self._text(text[-self.new_tokens :]) for text in of_draw] for of_draw in of_size]
            for of_size in self.tokens(arm, sizes)
        ]

    @torch.no_grad()
    def tokens(
        self, arm: Arm | None, sizes: Sequence[float], before: str = ""
    ) -> list[list[list[Int[Tensor, " _"]]]]:
        """Separator, prompt and new tokens of each text of `write`, by size, draw and prompt."""
        ids = self.read(before) if before else self.ids
        shape = len(sizes), self.draws, len(ids)
        rows = list(np.ndindex(shape))
        found: dict[tuple[int, ...], Tensor] = {}
        for length in sorted({len(one) for one in ids}):
            those = [row for row in rows if len(ids[row[2]]) == length]
            for start in range(0, len(those), self.batch_texts):
                part = those[start : start + self.batch_texts]
                tokens = torch.tensor([ids[i] for _, _, i in part])
                edits = []
                if arm is not None:
                    size = torch.tensor([sizes[at] for at, _, _ in part])
                    pushed = arm.pushed(size, [(draw, i) for _, draw, i in part])
                    edits.append(intervention(self.one, pushed))
                with intervene(self.one.lm, *edits):
                    written = generate(
                        self.one.lm, tokens, new_tokens=self.new_tokens,
                        temperature=self.temperature, seed=self.seed,
                        names=[(draw, *self.ids[i]) for _, draw, i in part],
                    )  # fmt: skip
                found |= zip(part, written[:, length:].cpu(), strict=True)
        whole = [torch.cat([torch.tensor(self.ids[row[2]]), found[row]]) for row in rows]
        return _folded(whole, shape)

    def read(self, before: str) -> list[list[int]]:
        """Tokens of every prompt behind a text.

        Raises:
            ConfigError: If what is written after them would grow longer than the LM allows.
        """
        lm = self.one.lm
        ids = tokenise(lm.tokenizer, [before + prompt for prompt in self.prompts])
        longest = max(map(len, ids)) + 1
        if longest + self.new_tokens > lm.max_ctx:
            behind = f" behind the text {before[:60]!r}" if before else ""
            raise ConfigError(
                f"The longest prompt has {longest} tokens{behind} and new_tokens="
                f"{self.new_tokens} are written after it; {lm.name} allows {lm.max_ctx} together. "
                "Give shorter prompts or words, or write less."
            )
        return [[lm.separator_id, *one] for one in ids]

    def _text(self, ids: Tensor) -> str:
        return b"".join(self._vocabulary[i] for i in ids.tolist()).decode(errors="replace")

    def _cross_entropy(self, texts: Sequence[Tensor]) -> np.ndarray:
        found = np.zeros(len(texts))
        for length in sorted({len(text) for text in texts}):
            those = [i for i, text in enumerate(texts) if len(text) == length]
            for start in range(0, len(those), BATCH):
                part = those[start : start + BATCH]
                tokens = torch.stack([texts[i] for i in part]).to(self.one.lm.device)
                logits = self.one.lm.logits(tokens)[:, -self.new_tokens - 1 : -1]
                targets = tokens[:, -self.new_tokens :]
                ce = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
                found[part] = ce.reshape(targets.shape).mean(1).double().cpu().numpy()
        return found


def distinct(ids: Sequence[int], n: int = 3) -> float:
    """Share of different ones among the sequences of n tokens; 1 where there is none.

    Example:
        >>> distinct([1, 2, 3, 4]), distinct([1, 1, 1, 1, 1])
        (1.0, 0.3333333333333333)
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def scored(written: Written, clean: Written, judge: Judge) -> Scores:
    """Scores of texts.

    Source: AxBench (Wu et al. 2025, arXiv 2501.17148) takes the harmonic mean of three scores from
    0 to 2; its score of how well an instruction is followed has no place here.

    Args:
        written: The texts.
        clean: Unsteered texts of the same prompts; their means are what fluency is relative to.
        judge: Reads the texts.
    """
    texts = [text for of_size in written.texts for of_draw in of_size for text in of_draw]
    concept = 2 * np.clip(2 * judge(texts).reshape(written.ce.shape) - 1, 0, None)
    near = np.minimum(1, np.exp(clean.ce.mean((0, 1)) - written.ce))
    varied = np.minimum(1, written.distinct / clean.distinct.mean((0, 1)))
    fluency = 2 * near * varied
    return Scores(concept, fluency, harmonic(concept, fluency))


def harmonic(
    first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Harmonic mean; 0 where a value is 0.

    Example:
        >>> harmonic(np.array([2.0, 0.0]), np.array([1.0, 2.0])).round(3).tolist()
        [1.333, 0.0]
    """
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(total), where=total != 0)


def _folded(listed: list, shape: tuple[int, ...]) -> list:
    """Nested lists of a shape.

    Example:
        >>> _folded([1, 2, 3, 4], (1, 2, 2))
        [[[1, 2], [3, 4]]]
    """
    for width in shape[:0:-1]:
        listed = [listed[i : i + width] for i in range(0, len(listed), width)]
    return listed
