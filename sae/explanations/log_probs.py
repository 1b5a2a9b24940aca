"""Log-probabilities of tokens by a causal LM, kept in the cache: every row is read once."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from sae.cached import cached
from sae.explanations.budget import Budget
from sae.language.lm import LanguageModel
from sae.language.prefix import Prefix
from sae.language.text import tokenise
from sae.provenance import content_key

_PASS_TOKENS = 1024


class Asked(NamedTuple):
    """Tokens to read, and the probabilities to return.

    Args:
        tokens: Token ids.
        at: Positions of them.
        ids: Tokens whose probability at these positions is wanted, given all that stands before;
            (): the token that stands there.
    """

    tokens: tuple[int, ...]
    at: tuple[int, ...]
    ids: tuple[int, ...] = ()


Prompt = Sequence[int]
Answers = Float[np.ndarray, "places ids"]


@runtime_checkable
class LMJudge(Protocol):
    """A causal LM that gives probabilities of tokens."""

    key: str
    """Changes when the probabilities do."""
    separator: int
    """Token between documents, which every prompt starts with."""

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ...

    def log_probs(self, prefix: Prompt, rows: Sequence[Asked]) -> list[Answers]:
        """Log-probabilities of what is asked about each row, all behind the same prefix.

        Args:
            prefix: Token ids, one or more.
            rows: Rows that are read behind it.
        """
        ...


class LocalJudge:
    """An LM of this process; the prefix is read once (`Prefix`).

    Args:
        lm: The LM.
        pass_tokens: Tokens in a pass; decides memory.
    """

    def __init__(self, lm: LanguageModel, pass_tokens: int = _PASS_TOKENS):
        self.lm, self.pass_tokens, self.separator = lm, pass_tokens, lm.separator_id
        self.key = content_key({"lm": dict(lm.identity), "dtype": str(lm.dtype)})

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(tokenise(self.lm.tokenizer, [text])[0])

    @torch.no_grad()
    def log_probs(self, prefix: Prompt, rows: Sequence[Asked]) -> list[Answers]:
        """See `LMJudge`.

        Raises:
            ConfigError: If prefix and row are longer than the LM allows.
        """
        # the last token of the prefix is read again with each row: it predicts the row's first
        logits_of = self.lm.logits
        if len(prefix) > 1:
            logits_of = Prefix(self.lm, torch.tensor(list(prefix[:-1]))).logits
        found: dict[int, Answers] = {}
        for part in self._passes(rows):
            longest = max(len(rows[i].tokens) for i in part)
            tokens = torch.full((len(part), longest + 1), self.separator)
            tokens[:, 0] = prefix[-1]
            for k, i in enumerate(part):
                tokens[k, 1 : len(rows[i].tokens) + 1] = torch.tensor(rows[i].tokens)
            logits = logits_of(tokens)
            for k, i in enumerate(part):
                found[i] = _answers(logits[k], rows[i])
        return [found[i] for i in range(len(rows))]

    def _passes(self, rows: Sequence[Asked]) -> Iterator[list[int]]:
        """Numbers of rows that are read together, those of like length."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        while order:
            most = max(1, self.pass_tokens // (len(rows[order[-1]].tokens) + 1))
            yield order[-most:]
            del order[-most:]


def _answers(logits: torch.Tensor, row: Asked) -> Answers:
    """Answer about a row, out of the logits that predict each of its tokens."""
    at = torch.tensor(row.at, device=logits.device)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs = torch.log_softmax(logits[at].to(wide), -1)
    ids = torch.tensor(row.ids or [[row.tokens[i]] for i in row.at], device=logits.device)
    return log_probs.gather(1, ids.expand(len(row.at), -1)).cpu().numpy()


class LogProbs:
    """Answers of a judge; a killed run goes on after the last prefix whose rows were read.

    Args:
        judge: The judge.
        budget: Gets the number of tokens of each prefix and its rows; None: nobody counts.
    """

    def __init__(self, judge: LMJudge, budget: Budget | None = None):
        self.judge, self.budget = judge, budget or Budget()
        self._known: dict[tuple[tuple[int, ...], Asked], Answers] = {}

    def of(self, prefix: Prompt, rows: Sequence[Asked]) -> list[Answers]:
        """Log-probabilities of what is asked about each row; see `LMJudge.log_probs`."""
        behind = tuple(prefix)
        new = [row for row in dict.fromkeys(rows) if (behind, row) not in self._known]
        if new:
            digest = sha256(repr((behind, new)).encode()).hexdigest()
            identity = {"judge": self.judge.key, "rows": digest, "count": len(new)}

            def make():
                found = self.judge.log_probs(behind, new)
                return {
                    "log_probs": torch.from_numpy(np.concatenate([f.ravel() for f in found]))
                }, None

            flat = cached("log_probs/", identity, make)[0]["log_probs"].numpy()
            shapes = [(len(row.at), max(1, len(row.ids))) for row in new]
            ends = np.cumsum([places * ids for places, ids in shapes])
            parts = np.split(flat, ends[:-1])
            for row, shape, part in zip(new, shapes, parts, strict=True):
                self._known[behind, row] = part.reshape(shape)
            self.budget.spend(len(behind) - 1 + sum(len(row.tokens) + 1 for row in new))
        return [self._known[behind, row] for row in rows]
