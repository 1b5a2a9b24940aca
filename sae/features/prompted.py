"""Answers of an LM to prompts, and its predictions on text, under edits of activations."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import functional
from sae.activations.counted import Counted
from sae.artifacts.placed import PlacedSAE
from sae.features.effects import at_one_point
from sae.features.make import contexts_in
from sae.interventions import Intervention, Positions, Replacement, intervene
from sae.language.lm import LanguageModel
from sae.language.prefix import Prefix
from sae.progress import progress
from sae.tasks.task import Task
from sae.types import Point, Split

BATCH_TOKENS = 1024
"""Tokens in a pass over prompts."""


class Clean(NamedTuple):
    """Prompts as the LM itself reads them.

    Args:
        x: Rows of the query, from the first edited token to the last, prompt by prompt.
        prompt: Number of the prompt of each row.
        difference: Logit of the right answer less that of the wrong one.
    """

    x: Float[Tensor, "rows d"]
    prompt: Int[Tensor, " rows"]
    difference: Float[Tensor, " prompts"]


class Prompted:
    """Prompts of a task whose tokens are edited from a place on.

    What stands before is read once for all prompts that start alike.

    Args:
        lm: The LM.
        point: Point where activations are edited.
        counted: Rule for the rows that count there; None: all.
        task: The task; all tokens from `place` on are among the places of its prompts.
        place: Name of the first edited place.
    """

    def __init__(
        self, lm: LanguageModel, point: Point, counted: Counted | None, task: Task,
        place: str = "name",
    ) -> None:  # fmt: skip
        self.lm, self.point, self.counted, self.task = lm, point, counted, task
        groups: dict[tuple[int, ...], dict[int, list[int]]] = {}
        for i, prompt in enumerate(task.prompts):
            before = prompt.tokens[: prompt.places[place]]
            groups.setdefault(before, {}).setdefault(len(prompt.tokens), []).append(i)
        self._groups = [
            (torch.tensor(before), torch.tensor(members))
            for before, by_length in groups.items() for members in by_length.values()
        ]  # fmt: skip
        self._prefixes: dict[int, Prefix] = {}
        self._sides = torch.tensor([(one.right, one.wrong) for one in task.prompts])

    def clean(self) -> Clean:
        """Rows and answers of the LM itself.

        Raises:
            ConfigError: If an edited row does not count.
        """
        rows: dict[int, Tensor] = {}
        difference = torch.zeros(len(self.task))
        seen: list[Tensor] = []
        with progress(f"read {self.task.name}", len(self.task), "prompts") as advance:
            for members, tokens, prefix in self._passes():
                with self.lm.hooked({self.point: lambda x, _: seen.append(x)}):
                    difference[members] = self._difference(members, prefix.logits(tokens))
                x = seen.pop()
                if self.counted is not None:
                    counts = self.counted.at([self.point]).mask([x], tokens.to(x.device))
                    self.task.require_counted(members, counts.cpu(), prefix.length, self.point)
                rows |= zip(members.tolist(), x.cpu().unbind(), strict=True)
                advance(len(members))
        listed = [rows[i] for i in range(len(self.task))]
        lengths = torch.tensor([len(one) for one in listed])
        return Clean(torch.cat(listed), torch.repeat_interleave(lengths), difference)

    def under(self, replacement: Replacement) -> Float[Tensor, " prompts"]:
        """Logit of the right answer less that of the wrong one, with the query edited."""
        edit = Intervention(self.point, replacement, self.counted)
        difference = torch.zeros(len(self.task))
        for members, tokens, prefix in self._passes():
            with intervene(self.lm, edit):
                difference[members] = self._difference(members, prefix.logits(tokens))
        return difference

    def _passes(self) -> Iterator[tuple[Tensor, Tensor, Prefix]]:
        for i, (before, members) in enumerate(self._groups):
            if i not in self._prefixes:
                self._prefixes[i] = Prefix(self.lm, before)
            first = len(before)
            tokens = torch.tensor([self.task.prompts[j].tokens[first:] for j in members.tolist()])
            size = max(1, BATCH_TOKENS // tokens.shape[1])
            for part, of_part in zip(members.split(size), tokens.split(size), strict=True):
                yield part, of_part, self._prefixes[i]

    def _difference(self, members: Tensor, logits: Tensor) -> Tensor:
        pair = logits[:, -1].float().cpu().gather(1, self._sides[members])
        return pair[:, 0] - pair[:, 1]


@torch.no_grad()
def on_text(
    one: PlacedSAE, on: Split, edits: Sequence[Replacement], *, num_tokens: int,
    batch_contexts: int = 8, advance: Callable[[int], object] = lambda n: None,
) -> Float[Tensor, "documents conditions sums"]:  # fmt: skip
    """Sums over each document in some contexts of a split, edited at every row that counts.

    Contexts are evenly spaced over the split, so that they are of many documents.

    The first entry is the clean LM.

    Args:
        one: The SAE, which says where edits act and which rows count.
        on: The split.
        edits: The edits.
        num_tokens: Upper limit to the tokens read.
        batch_contexts: Contexts in a pass.
        advance: Gets the number of contexts times edits done.

    Returns:
        Predictions that count, their cross entropy and KL(clean || edited) in nats, edited rows,
        the length of the edit and its share of the length of the row.
    """
    point, positions = at_one_point(one)
    store = one.source.store(on)
    contexts = contexts_in(store, num_tokens)
    chosen = np.arange(contexts) * len(store.tokens) // contexts
    text = torch.from_numpy(store.tokens[chosen]).long()
    document_of = torch.from_numpy(store.document[chosen]).long()
    units, unit = np.unique(document_of, return_inverse=True)
    unit = torch.from_numpy(unit.reshape(contexts, -1))
    sums = torch.zeros(len(units), len(edits) + 1, 6, dtype=torch.float64)
    for start in range(0, contexts, batch_contexts):
        part = slice(start, min(start + batch_contexts, contexts))
        tokens, document = text[part].to(one.lm.device), document_of[part].to(one.lm.device)
        positions.start(tokens)
        sized = [_sized(positions.only(edit), positions, unit[part], sums[:, i + 1])
                 for i, edit in enumerate(edits)]  # fmt: skip
        conditions = [{point: positions.note(point)}, *({point: edit} for edit in sized)]
        passes = one.lm.logits_under(tokens, conditions)
        clean = next(passes)
        mask = functional.prediction_mask(document, store.spec.keep_first)
        context, place = (mask & positions.replaced()[:, :-1]).nonzero(as_tuple=True)
        kept = clean[context, place]
        targets = tokens[context, place + 1]
        of_unit = unit[part][context.cpu(), place.cpu()]
        for i in range(len(edits) + 1):
            other = kept if i == 0 else next(passes)[context, place]
            for at in torch.arange(len(context)).split(512):
                terms = functional.compare_predictions(kept[at], other[at], targets[at])
                found = torch.stack([torch.ones_like(terms["kl"]), terms["other"], terms["kl"]], 1)
                sums[:, i, :3].index_add_(0, of_unit[at], found.cpu().double())
            advance(len(tokens))
    return sums


def _sized(edit: Replacement, positions: Positions, unit: Tensor, into: Tensor) -> Replacement:
    """The same edit, which adds its rows and lengths to the last three sums of each document."""

    def replace(x: Tensor) -> Tensor:
        new = edit(x)
        rows = positions.replaced().cpu().double()
        size = (new.float() - x.float()).norm(dim=-1).cpu().double()
        share = share_of_length(size, x.float().cpu().double())
        found = torch.stack([rows, size * rows, share * rows], -1)
        into[:, 3:].index_add_(0, unit.flatten(), found.flatten(0, 1))
        return new

    return replace


def share_of_length(size: Float[Tensor, "*n"], x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """The length of an edit as a share of that of its row; 0 of a row of zeros, which has none."""
    length = x.norm(dim=-1)
    return torch.where(length > 0, size / length, 0.0)
