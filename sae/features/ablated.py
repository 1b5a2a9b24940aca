"""Effects of ablating latents, kept beside their records: a latent is measured once."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae.artifacts.placed import PlacedSAE
from sae.cached import cached_json
from sae.checksums import read_sealed
from sae.errors import ArtifactError, ConfigError
from sae.features.effects import Effect, ablate, strongest
from sae.features.record import Listed
from sae.features.records import Records
from sae.features.watched import by_hash
from sae.progress import progress

CONTEXTS, TOKENS = 10, 15
"""Strongest contexts that a latent is ablated in, and tokens that are kept at each end."""


class Ablated(NamedTuple):
    """The effect of setting a latent to zero where it fires in its strongest contexts.

    Args:
        lowered: Tokens whose logits fall most, and their mean changes.
        raised: Tokens whose logits rise most, and their mean changes.
        kl: Mean KL(clean || ablated), in nats.
        kl_random: KL after an equally long step in a random direction, the control.
        positions: Number of positions that these are means over.
        contexts: Number of contexts.
    """

    lowered: Listed
    raised: Listed
    kl: float
    kl_random: float
    positions: int
    contexts: int


def chosen(records: Records, asked: int | Sequence[int | str]) -> list[str]:
    """Names of latents that fire: those of a list, or as many as a number says.

    Of a number, those with the smallest hashes of their indices are taken, so that nobody chooses
    them by eye (as for `glimpse`, without its bins of density).

    Raises:
        ConfigError: If a latent of the list is silent or does not exist.
    """
    if isinstance(asked, int):
        return [records.name_of(i) for i in by_hash(records.indices)[:asked]]
    try:
        return [records[latent].name for latent in asked]
    except KeyError as error:
        raise ConfigError(f"eval.dashboard.ablate: {error.args[0]} Leave it out.") from None


def ablated(one: PlacedSAE, records: Records, names: Sequence[str]) -> dict[str, Ablated]:
    """Effects of latents, measured where they are not known; a killed measurement goes on.

    Args:
        one: The SAE of the records; it reads and writes one point.
        records: The records.
        names: Latents that fire.
    """
    found = {}
    with progress("ablate latents", len(names), "latents") as advance:
        for name in names:
            content = cached_json(_file(records, name), lambda name=name: _made(one, records, name))
            found[name] = _read(content)
            advance(1)
    return found


def known(records: Records) -> dict[str, Ablated]:
    """All effects that were measured for some records."""
    found = {}
    for file in sorted((records.folder / f"effects-{CONTEXTS}").glob("*.json")):
        with suppress(ArtifactError):  # a damaged one is measured again when it is asked for
            found[file.stem] = _read(read_sealed(file))
    return found


def changes(effect: Effect, vocabulary: int, count: int = TOKENS) -> tuple[Listed, Listed]:
    """The tokens whose logits fall most and rise most; ids from `vocabulary` on are no tokens."""
    found = []
    for largest in (False, True):
        top = effect.logits[:vocabulary].topk(min(count, vocabulary), largest=largest)
        found.append(Listed(top.indices.numpy(), top.values.double().numpy()))
    return found[0], found[1]


def _made(one: PlacedSAE, records: Records, name: str) -> dict[str, object]:
    record = records[name]
    contexts = strongest(record, CONTEXTS)
    effect = ablate(one, one.lm, record, contexts)
    lists = changes(effect, len(records.text.vocabulary))
    return {
        **{n: list(map(np.ndarray.tolist, one)) for n, one in zip(_LISTS, lists, strict=True)},
        "kl": effect.kl, "kl_random": effect.kl_random, "positions": effect.positions,
        "contexts": len(contexts.tokens),
    }  # fmt: skip


_LISTS = ("lowered", "raised")


def _read(content: dict) -> Ablated:
    lists = {name: Listed(*map(np.array, content[name])) for name in _LISTS}
    fields: dict[str, Any] = {name: content[name] for name in Ablated._fields} | lists
    return Ablated(**fields)


def _file(records: Records, name: str) -> Path:
    return records.folder / f"effects-{CONTEXTS}" / f"{name}.json"
