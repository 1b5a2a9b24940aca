"""A first look: some latents of every firing rate, chosen by a hash and not by eye."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.features.firings import collect
from sae.features.make import contexts_in, place_of, text_of
from sae.features.record import Record
from sae.features.summary import summarise
from sae.features.watched import by_hash
from sae.features.weights import of_latent, weight_statistics, written_at
from sae.provenance import cache_dir
from sae.types import Split

LOWEST, HIGHEST, BINS = 1e-4, 0.1, 8


def glimpse(
    one: PlacedSAE, split: Split, *, num_tokens: int = 65_536, per_bin: int = 3,
    batch_rows: int = 2048,
) -> tuple[list[Record], int]:  # fmt: skip
    """Records of a few live latents from each bin of density, the rarest first.

    Among the latents of a bin the hash of the number decides, so that nobody chose them by eye.
    Nothing is written but a temporary folder in the cache. The LM runs only where activations are
    streamed; its unembedding gives the logits.

    Args:
        one: An SAE of an LM's activations, whose split is prepared.
        split: The text.
        num_tokens: Tokens that are read at most, the first ones.
        per_bin: Latents from each of 8 logarithmic bins between 1e-4 and 0.1.
        batch_rows: Vectors encoded at once.

    Returns:
        The records, and how many tokens were read.

    Raises:
        ConfigError: If the tokens behind the activations are not known.
    """
    source = one.source
    if not isinstance(source, LMActivations):
        raise ConfigError(
            "eval=glimpse needs the tokens behind the activations. Choose an SAE of an LM's "
            "activations."
        )
    store = source.store(split)
    contexts = contexts_in(store, num_tokens)
    cache = cache_dir()
    room = cache if os.access(cache, os.W_OK) else None  # a cache of others: the system's folder
    with tempfile.TemporaryDirectory(dir=room, prefix="glimpse-") as folder:
        num_rows = contexts * store.spec.rows_per_context
        firings = collect(Path(folder), one.sae, one.rows(split), num_rows, batch_rows)
        text = text_of(source, split, firings.counted, contexts)
        num_counted = int(text.counted.sum())
        chosen = choose(firings.counts / num_counted, per_bin)
        place = place_of(text, store, seed=0)
        found = {i: summarise(i, firings.read(range(i, i + 1))[0], place) for i in chosen}
    latents = sorted({i % one.sae.d_sae for i in chosen})
    weights = weight_statistics(
        one.sae, one.lm, written_at(one.ends), latents=torch.tensor(latents, dtype=torch.long)
    )
    weights = {name: tensor.numpy() for name, tensor in weights.items()}
    records = []
    for index, summary in found.items():
        negative, latent = divmod(index, one.sae.d_sae)
        records.append(Record(
            latent=latent, sign=-1 if negative else 1, density=summary.firings / num_counted,
            text=text, **vars(summary),
            **of_latent(weights, latents.index(latent), -1 if negative else 1),
        ))  # fmt: skip
    return records, text.tokens.size


def choose(density: Sequence[float] | np.ndarray, per_bin: int) -> list[int]:
    """Latents of each bin of density, those with the smallest hashes of their numbers.

    Example:
        >>> choose([0.0, 0.5, 0.01, 0.011, 2e-4], per_bin=1)
        [4, 3]
    """
    edges = np.geomspace(LOWEST, HIGHEST, BINS + 1)
    bins = np.searchsorted(edges, density, side="right") - 1
    chosen = []
    for n in range(BINS):
        those = np.flatnonzero(bins == n).tolist()
        chosen += by_hash(those)[:per_bin]
    return chosen
