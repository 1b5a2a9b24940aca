"""Latents on a text of the user's own, which LM and SAE read once.

An empty line begins a new text. Each is read in contexts as long as those of the training, and the
separator stands before each context, as it stands between documents there: the first token would
be a sink otherwise. The separator is not shown.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import functional
from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.cached import cached_tensors
from sae.checksums import load_tensors
from sae.errors import ConfigError
from sae.features.firings import sides
from sae.features.records import Records
from sae.features.summary import decile_of
from sae.language.pieces import pieces, token_bytes
from sae.language.text import tokenise
from sae.tables import Column, Table

MAX_BYTES, MAX_TOKENS = 65_536, 4096
"""Size of a text that is read at once, in UTF-8 and in tokens."""
MAX_FIRINGS = 1_000_000
"""Firings that a page can show of it; a basis as it is fires everywhere."""
_BATCH_CONTEXTS = 8


class Written(NamedTuple):
    """A text as tokens.

    Args:
        tokens: Token ids, separators left out.
        starts: The first token of each context.
        texts: The first token of each text.
    """

    tokens: Int[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " contexts"]
    texts: Int[np.ndarray, " texts"]


class Reading(NamedTuple):
    """Latents that fire on a text.

    Args:
        written: The text.
        counted: True where the row of each token counts; the others have no activation.
        row: The token of each firing, ascending.
        index: Its latent; d_sae + j is the negative side of latent j.
        value: The activation there, in the LM's units.
    """

    written: Written
    counted: Bool[np.ndarray, " tokens"]
    row: Int[np.ndarray, " firings"]
    index: Int[np.ndarray, " firings"]
    value: Float[np.ndarray, " firings"]


def text_in(file: Path, what: str) -> str:
    """The content of a text file.

    Args:
        file: UTF-8, with or without a byte order mark.
        what: Its name in errors.

    Raises:
        ConfigError: If it cannot be read, is too long or is not UTF-8.
    """
    if not file.is_file():
        raise ConfigError(f"{what} is not a file. Give a text file.")
    try:
        with file.open("rb") as content:
            raw = content.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{what} cannot be read ({error.strerror}).") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"{what} holds {file.stat().st_size:,} bytes; at most {MAX_BYTES:,} are read at once. "
            "Give a part of it."
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{what} is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}. Save it as "
            "UTF-8."
        ) from error


def write(one: PlacedSAE, text: str, what: str = "The text") -> Written:
    """Tokens of a text, cut into contexts; the LM does not run.

    Args:
        one: The SAE of an LM's activations.
        text: Lone surrogates in it become U+FFFD.
        what: Its name in errors.

    Raises:
        ConfigError: If it is empty or too long.
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if len(whole.encode()) > MAX_BYTES:
        raise ConfigError(f"{what} is longer than {MAX_BYTES:,} bytes. Give a part of it.")
    texts = [part for part in re.split(r"\n(?:[^\S\n]*\n)+", _unix(whole)) if part.strip()]
    known = one.__dict__.get("lm")  # where it is loaded, so is its tokenizer
    tokenizer = one.source.source.load_tokenizer() if known is None else known.tokenizer
    found = [ids for ids in tokenise(tokenizer, texts) if ids] if texts else []
    total = sum(map(len, found))
    if not total:
        raise ConfigError(f"{what} is empty. Write some words.")
    if total > MAX_TOKENS:
        raise ConfigError(
            f"{what} has {total:,} tokens; at most {MAX_TOKENS:,} are read at once. Give a part "
            "of it."
        )
    length = one.source.specs["test"].ctx - 1  # the separator takes a place
    first, starts, firsts = 0, [], []
    for ids in found:
        firsts.append(first)
        starts += range(first, first + len(ids), length)
        first += len(ids)
    return Written(np.concatenate(found), np.array(starts), np.array(firsts))


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")


@torch.no_grad()
def read(one: PlacedSAE, written: Written) -> Reading:
    """Run LM and SAE on a text.

    Args:
        one: An SAE, transcoder or crosscoder at its place.
        written: The text.
    """
    lm, ends, counted = one.lm, one.ends, one.counted
    assert ends is not None
    contexts = np.split(written.tokens, written.starts[1:])
    counts, total = np.ones(len(written.tokens), bool), 0
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for batch in _batches(contexts):
        ids = [[lm.separator_id, *contexts[i].tolist()] for i in batch]
        tokens = torch.tensor(ids, device=lm.device)
        seen = lm.capture(tokens, ends.points)
        parts = [seen[point] for point in ends.points]
        ordinary = torch.ones_like(tokens, dtype=torch.bool)
        if counted is not None:
            ordinary &= counted.at(ends.points).mask(parts, tokens).to(ordinary.device)
        for place, i in enumerate(batch):
            x, mask = [part[place, 1:] for part in parts], ordinary[place, 1:]
            first = int(written.starts[i])
            counts[first : first + len(mask)] = mask.cpu().numpy()
            row, index, value = _firings(one, torch.cat(x, dim=-1), mask)
            total += len(row)
            if total > MAX_FIRINGS:
                raise ConfigError(
                    f"More than {MAX_FIRINGS:,} firings on this text: a page cannot show so many. "
                    "Give a shorter text, or a sparser dictionary."
                )
            found.append((row + first, index, value))
    found.sort(key=lambda one: one[0][0] if len(one[0]) else -1)
    return Reading(written, counts, *map(np.concatenate, zip(*found, strict=True)))


def _batches(contexts: Sequence[np.ndarray]) -> list[list[int]]:
    """Contexts of equal length together: the LM is given nothing padded."""
    by_length: dict[int, list[int]] = {}
    for i, context in enumerate(contexts):
        by_length.setdefault(len(context), []).append(i)
    return [
        those[i : i + _BATCH_CONTEXTS]
        for those in by_length.values()
        for i in range(0, len(those), _BATCH_CONTEXTS)
    ]


def _firings(
    one: PlacedSAE, x: Tensor, counts: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, _ = functional.input_and_target(x.to(one.sae.device), one.sae.d_in)
    f = one.sae.encode(x).float()
    f[~counts.to(f.device)] = 0
    f = sides(one.sae, f)
    row, index = f.nonzero(as_tuple=True)
    return row.cpu().numpy(), index.cpu().numpy(), f[row, index].cpu().numpy()


def latents_on(one: PlacedSAE, text: str) -> Table:
    """Latents that fire on a text: a row for each firing, the largest activation first.

    Args:
        one: The SAE of an LM's activations.
        text: As of `write`.

    Returns:
        `position` and `token` of the text, `latent`, and `activation` in the LM's units, below 0
        on the negative side of a signed code.

    Raises:
        ConfigError: If the SAE is not one of an LM's activations, or the text is empty or too long.
    """
    if not isinstance(one.source, LMActivations):
        raise ConfigError(
            "The activations of this SAE come from no known LM, which could read a text. Choose an "
            "SAE of an LM's activations."
        )
    reading = read(one, write(one, text))
    ids = reading.written.tokens.tolist()
    shown = pieces(ids, token_bytes(one.lm.tokenizer))
    negative, latent = np.divmod(reading.index, one.sae.d_sae)
    order = np.argsort(-reading.value, kind="stable")
    return Table({
        "position": Column("int64", "", reading.row[order]),
        "token": Column("string", "", [shown[row] for row in reading.row[order]]),
        "latent": Column("int64", "", latent[order]),
        "activation": Column(
            "float64", "activation", (reading.value * (1.0 - 2.0 * negative))[order]
        ),
    })  # fmt: skip


def kept(one: PlacedSAE, records: Records, written: Written) -> Path:
    """The file beside the records that holds the reading of a text, made first if missing."""
    digest = sha256(b"".join(part.astype("<i8").tobytes() for part in written)).hexdigest()[:16]
    file = records.folder / f"own-text-{digest}.safetensors"

    def make() -> tuple[dict[str, Tensor], None]:
        reading = read(one, written)
        parts = {**written._asdict(), **reading._asdict()}
        return {n: torch.from_numpy(part) for n, part in parts.items() if n != "written"}, None

    cached_tensors(file, make)
    return file


def reading_in(file: Path) -> Reading:
    """The reading that `kept` wrote.

    Raises:
        ArtifactError: If the file is missing or damaged.
    """
    tensors = {name: tensor.numpy() for name, tensor in load_tensors(file)[0].items()}
    written = Written(*(tensors.pop(name) for name in Written._fields))
    return Reading(written, **tensors)


def deciles(reading: Reading, records: Records) -> Int[np.ndarray, " firings"]:
    """The decile of each firing in the record of its latent; 0 where it is silent there."""
    alive = np.array(records.indices)
    place = np.searchsorted(alive, reading.index)
    there = np.isin(reading.index, alive)
    found = np.zeros(len(reading.row), np.int64)
    found[there] = decile_of(reading.value[there], records.decile_edges[place[there]])
    return found


def as_table(reading: Reading, records: Records) -> Table:
    """A row for each firing: text, position in it, token, latent, activation, decile."""
    written, row = reading.written, reading.row
    text = np.searchsorted(written.texts, row, side="right") - 1
    latents = [records.name_of(index) for index in reading.index.tolist()]
    return Table({
        "text": Column("int64", "", text),
        "position": Column("int64", "", row - written.texts[text]),
        "token": Column("int64", "", written.tokens[row]),
        "latent": Column("string", "", latents),
        "activation": Column("float64", "activation", reading.value.astype(np.float64)),
        "decile": Column("int64", "", deciles(reading, records)),
    })  # fmt: skip
