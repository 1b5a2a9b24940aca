"""Activations of single texts, kept in the cache: one LM pass for all SAEs at a point."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.counted import Counted
from sae.cached import Made, cached
from sae.errors import ConfigError
from sae.language.lm import LanguageModel
from sae.language.text import tokenise
from sae.progress import progress
from sae.types import Point

_BATCH_TOKENS = 4096


class TextActivations(NamedTuple):
    """Rows of all texts, one text after the other.

    Args:
        x: Activations in the LM's dtype, on the CPU.
        lengths: Rows of each text.
    """

    x: Float[Tensor, "rows d_in"]
    lengths: Int[Tensor, " texts"]


def text_activations(
    lm: LanguageModel,
    point: Point,
    texts: Sequence[str],
    *,
    name: str,
    which: Literal["last", "all"],
    max_tokens: int,
    counted: Counted | None = None,
) -> TextActivations:
    """Activations of each text, read by itself behind the document separator.

    The separator takes the place of position 0, the attention sink, and gives no row.

    Args:
        lm: The LM.
        point: Point of the LM.
        texts: The texts; none may be empty.
        name: Name to show to people.
        which: The row of the last token alone, or the rows of all tokens.
        max_tokens: Longer texts lose their beginning (`last`) or their end (`all`).
        counted: Rule for the rows that count; `last` is then the last row that does, and zeros
            where no row of a text counts. `all` has all rows.

    Raises:
        ConfigError: If `max_tokens` leaves no room for a token.
    """
    lm.check(point)
    room = _room(lm, max_tokens)
    identity = {
        "lm": dict(lm.identity), "dtype": str(lm.dtype), "point": str(point), "which": which,
        "room": room, "texts": list(texts),
    }  # fmt: skip
    if counted is not None and which == "last":
        identity["limits"] = counted.to_json()["limits"]  # no text has a special token
    else:
        counted = None

    def make() -> Made:
        cut = token_ids(lm, texts, which=which, max_tokens=max_tokens)
        rows = _rows(lm, point, cut, which, counted, f"read {name}")
        lengths = torch.tensor([len(one) for one in rows])
        return {"x": torch.cat(rows), "lengths": lengths}, None

    return TextActivations(**cached("labelled/", identity, make)[0])


def token_ids(
    lm: LanguageModel, texts: Sequence[str], *, which: Literal["last", "all"], max_tokens: int
) -> list[Sequence[int]]:
    """Token ids that `text_activations` reads of each text behind the separator.

    Args:
        lm: The LM.
        texts: The texts.
        which: See `text_activations`.
        max_tokens: See `text_activations`.

    Raises:
        ConfigError: If `max_tokens` leaves no room for a token.
    """
    room, ids = _room(lm, max_tokens), tokenise(lm.tokenizer, list(texts))
    return [one[-room:] if which == "last" else one[:room] for one in ids]


def _room(lm: LanguageModel, max_tokens: int) -> int:
    if max_tokens < 2:
        raise ConfigError(f"max_tokens={max_tokens} must be at least 2: a separator and a token.")
    return min(max_tokens, lm.max_ctx) - 1


def _rows(
    lm: LanguageModel,
    point: Point,
    ids: Sequence[Sequence[int]],
    which: str,
    counted: Counted | None,
    title: str,
) -> list[Tensor]:
    rows: dict[int, Tensor] = {}
    with progress(title, sum(map(len, ids))) as advance:
        for batch in _batches([len(one) for one in ids]):
            # Padded on the right, where a causal LM's earlier positions do not look.
            width = 1 + max(len(ids[i]) for i in batch)
            tokens = torch.full((len(batch), width), lm.separator_id)
            for row, i in enumerate(batch):
                tokens[row, 1 : 1 + len(ids[i])] = torch.tensor(ids[i], dtype=torch.long)
            x = lm.capture(tokens.to(lm.device), [point])[point].cpu()
            for row, i in enumerate(batch):
                of_text = x[row, 1 : 1 + len(ids[i])]
                rows[i] = of_text.clone() if which == "all" else _last(of_text, counted)
            advance(sum(len(ids[i]) for i in batch))
    return [rows[i] for i in range(len(ids))]


def _last(x: Float[Tensor, "rows d_in"], counted: Counted | None) -> Float[Tensor, "1 d_in"]:
    if counted is None:
        return x[-1:].clone()
    found = counted.mask([x], None).nonzero()
    return x[found[-1]].clone() if len(found) else torch.zeros_like(x[-1:])


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of about equal length together, as many as a batch may have tokens."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * (1 + lengths[i]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
