"""Latents to explain: chosen by their densities, with their firings on two splits."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SIGNED
from sae.errors import ConfigError
from sae.explanations.excerpts import PlacedText
from sae.explanations.pushed import Pushes
from sae.features.by_column import BY_COLUMN, firings_by_column
from sae.features.co_firing import co_firing
from sae.features.firings import Firings, FiringStore
from sae.features.glimpse import BINS, HIGHEST, LOWEST
from sae.features.make import all_firings, contexts_in, text_of
from sae.features.sets import read_features
from sae.features.watched import by_hash
from sae.language.text import special_ids
from sae.types import Split

PARTNERS = 5
_TURN = tuple((3 * n + 1) % BINS for n in range(BINS))
"""Turn of each bin of density among those that give one more: neighbours are far apart."""
"""Latents that fire most often with one, whose contexts are its hard negatives."""


@dataclass(frozen=True, eq=False)
class Latent:
    """A latent, or a class of places that plays one.

    Attributes:
        name: Its number, with a sign where the code has signs.
        train: Firings in the training text, by place.
        test: Firings in the test text, by place.
        density: Share of the training places that count on which it fires.
        partners: Places of the test text where a latent fires that often fires with it; None where
            that is not known.
        raised: Tokens that its atom raises most; () where that is not known.
    """

    name: str
    train: Firings
    test: Firings
    density: float
    partners: Int[np.ndarray, " places"] | None = None
    raised: Sequence[str] = ()

    @property
    def seed(self) -> int:
        """A number out of its name: what is drawn for it depends on no other latent."""
        return int.from_bytes(sha256(self.name.encode()).digest()[:4])

    @property
    def moments(self) -> tuple[float, float]:
        """Skew E[c³]/var^1.5 and kurtosis E[c⁴]/var² of its activation on the training text.

        As the paper has them (arXiv 2309.08600, Table 2): raw moments over powers of the variance.
        NaN where it does not vary.
        """
        value = self.train.value.astype(np.float64)
        if not len(value):
            return float("nan"), float("nan")
        raw = [self.density * float(np.mean(value**power)) for power in (1, 2, 3, 4)]
        variance = raw[1] - raw[0] ** 2
        if variance <= 1e-12 * raw[1]:
            return float("nan"), float("nan")
        return raw[2] / variance**1.5, raw[3] / variance**2


@runtime_checkable
class Reader(Protocol):
    """Gives activations of the latents of one dictionary on any text."""

    def read(
        self, name: str, tokens: Int[np.ndarray, "n ctx"], at: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """Activations of a latent.

        Args:
            name: Its name in the dictionary.
            tokens: A context each.
            at: The position in each that is asked about; what stands behind it does not matter.
        """
        ...

    def cost(self, tokens: Int[np.ndarray, "n ctx"], at: Int[np.ndarray, " n"]) -> int:
        """Tokens that an LM reads for it."""
        ...


@dataclass(frozen=True, eq=False)
class Subject:
    """A dictionary whose latents are explained.

    Attributes:
        name: Name in tables.
        latents: Latents that were chosen.
        reader: Gives their activations on changed text; None where nobody asks for them.
        pushes: Writes text while a latent is pushed; None where nobody asks for it.
    """

    name: str
    latents: Sequence[Latent]
    reader: Reader | None = None
    pushes: Pushes | None = None


def named(asked: Sequence[int | str], one: PlacedSAE, where: str) -> tuple[str, ...]:
    """Names of the latents that a user asks for, each once.

    Args:
        asked: Numbers, with a sign where the code has signs, or one features.json.
        one: The SAE.
        where: Setting or file to name in the error.

    Raises:
        ConfigError: If there is no such latent, or the file holds none.
    """
    if len(asked) == 1 and str(asked[0]).endswith(".json"):
        file = str(asked[0])
        asked = read_features(file, one).latents
        if not asked:
            raise ConfigError(f"{file} holds no latent. Give another file, or numbers.")
    found = []
    for latent in map(str, asked):
        number = latent.removeprefix("-")
        negative = latent != number and one.sae.config.activation not in SIGNED
        known = re.fullmatch("[0-9]+", number) and int(number) < one.sae.d_sae
        if negative or not known:
            raise ConfigError(
                f"{where}: there is no latent {latent}; latents are 0 to {one.sae.d_sae - 1}."
            )
        found.append(f"{'-' if latent != number else ''}{int(number)}")
    return tuple(dict.fromkeys(found))


def placed_text(one: PlacedSAE, split: Split, num_tokens: int, batch_rows: int) -> PlacedText:
    """The first tokens of a split by places, with the rows that count for an SAE."""
    store = one.source.store(split)
    firings = all_firings(one, split, num_tokens=num_tokens, batch_rows=batch_rows)
    contexts = contexts_in(store, num_tokens)
    tokenizer = one.source.source.load_tokenizer()
    return PlacedText(
        text_of(one.source, split, firings.counted, contexts), store.document[:contexts],
        frozenset(special_ids(tokenizer, every=True)), store.spec.rows_per_context,
    )  # fmt: skip


def subject_of(
    name: str, one: PlacedSAE, texts: tuple[PlacedText, PlacedText], asked: int | Sequence[str],
    *, batch_rows: int, dense: bool = False,
) -> Subject:  # fmt: skip
    """A dictionary's latents and their firings.

    Args:
        name: Name in tables.
        one: The dictionary at its place; both splits are prepared.
        texts: The training and the test text.
        asked: Number of latents, or their names.
        batch_rows: Vectors encoded at once.
        dense: True if nearly all latents fire on every row, so that only the chosen ones are read.
    """
    sides: list[dict[int, Firings]] = []
    partners: dict[int, np.ndarray] = {}
    signed = one.sae.config.activation == "identity"
    if dense and one.sae.config.activation in BY_COLUMN:
        count = asked if isinstance(asked, int) else len(asked)
        chosen = sorted(by_hash(range(one.sae.d_sae * (1 + signed)))[:count])
        for split, text in zip(("train", "test"), texts, strict=True):
            rows = text.text.counted[:, text.ctx - text.rows_per_context :].ravel()
            found = firings_by_column(one.sae, one.rows(split), rows, chosen)
            sides.append({i: _placed(fired, text) for i, fired in found})
    else:
        stores = [
            all_firings(one, split, num_tokens=text.tokens.size, batch_rows=batch_rows)
            for split, text in zip(("train", "test"), texts, strict=True)
        ]
        density = stores[0].counts / max(1, int(stores[0].counted.sum()))
        chosen = (
            stratified(density, asked) if isinstance(asked, int)
            else [index_of(latent, one.sae.d_sae) for latent in asked]
        )  # fmt: skip
        for store, text in zip(stores, texts, strict=True):
            sides.append({i: _placed(_read(store, i), text) for i in chosen})
        partners = dict(_partners(stores[1], chosen, texts[1]))
    places = int(texts[0].counted.sum())
    latents = [
        Latent(
            name_of(i, one.sae.d_sae), sides[0][i], sides[1][i],
            len(sides[0][i].row) / max(1, places), partners.get(i),
        )
        for i in chosen
    ]  # fmt: skip
    return Subject(name, latents)


def stratified(density: Float[np.ndarray, " latents"], count: int) -> list[int]:
    """Latents that fire, equally many from each bin of density, in the order of their numbers.

    Bins are as in `ranked`; of those that must give one more, the rarest do.

    Example:
        >>> stratified(np.array([0.0, 0.5, 0.01, 0.011, 2e-4]), 3)
        [1, 3, 4]
    """
    return sorted(i for _, _, i in sorted(_in_bins(density))[:count])


def ranked(density: Float[np.ndarray, " latents"]) -> list[int]:
    """Latents that fire; however many come first, they are equally many from each bin of density.

    The bins are those of `glimpse`, and what is rarer or denser goes into the outer ones; a bin
    with fewer gives all. In a bin those with the smallest hashes of their numbers come first:
    nobody chose them by eye. The first few are of bins far apart, so that few are not the rarest.
    """
    return [i for _, _, i in sorted((rank, _TURN[n], i) for rank, n, i in _in_bins(density))]


def _in_bins(density: Float[np.ndarray, " latents"]) -> list[tuple[int, int, int]]:
    """The rank in its bin, the bin and the number of each latent that fires."""
    edges = np.geomspace(LOWEST, HIGHEST, BINS + 1)[1:-1]
    of = np.where(density > 0, np.searchsorted(edges, density, side="right"), -1)
    bins = [by_hash(np.flatnonzero(of == n).tolist()) for n in range(BINS)]
    return [(rank, n, i) for n, one in enumerate(bins) for rank, i in enumerate(one)]


def name_of(index: int, d_sae: int) -> str:
    """The name of a latent by its index; d_sae + j is the negative side of latent j."""
    negative, latent = divmod(index, d_sae)
    return f"{'-' if negative else ''}{latent}"


def index_of(name: str, d_sae: int) -> int:
    """The index of a latent by its name."""
    return int(name.removeprefix("-")) + d_sae * name.startswith("-")


def token_lookup(name: str, texts: tuple[PlacedText, PlacedText], count: int) -> Subject:
    """The dictionary of tokens: a latent for each, which fires with 1 where the token is.

    Args:
        name: Name in tables.
        texts: The training and the test text.
        count: Number of tokens to take (`stratified`).
    """
    train = texts[0]
    occurrences = np.bincount(train.tokens[train.counted], minlength=len(train.vocabulary))
    density = occurrences / max(1, int(train.counted.sum()))
    latents = []
    for token in stratified(density, count):
        places = [np.flatnonzero((of.tokens == token) & of.counted) for of in texts]
        fired = [Firings(place, np.ones(len(place), np.float32)) for place in places]
        latents.append(Latent(str(token), fired[0], fired[1], float(density[token])))
    return Subject(name, latents)


def _read(store: FiringStore, index: int) -> Firings:
    (found,) = store.read(range(index, index + 1))
    return found


def _placed(fired: Firings, text: PlacedText) -> Firings:
    """Firings by place, those on rows that count in this text."""
    place = text.place(fired.row.astype(np.int64))
    there = text.counted[place]
    return Firings(place[there], fired.value[there])


def _partners(
    store: FiringStore, chosen: Sequence[int], text: PlacedText
) -> Iterator[tuple[int, np.ndarray]]:
    """For each latent, the places where one of those fires that most often fire with it."""
    together = co_firing(store)
    for i in chosen if together else ():
        some = together["latent"][i][together["count"][i] > 0][:PARTNERS].tolist()
        places = [_placed(_read(store, j), text).row for j in some]
        yield i, np.unique(np.concatenate(places)) if places else np.zeros(0, np.int64)
