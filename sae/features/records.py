"""Records of all latents of an SAE on a text: made once, then read latent by latent.

<cache>/features/<key>/
part-<n>.safetensors     every firing (firings.py)
group-<n>.safetensors    summaries of latents that follow each other (columns.py)
text, co_firing, weights .safetensors
facts.json               written last: the records are complete
"""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from sae.activations.cache import locate
from sae.checksums import load_tensors, unseal
from sae.features.columns import unpack
from sae.features.firings import Firings, FiringStore, open_firings
from sae.features.record import DECILES, Record, Summary
from sae.features.shown import Listed, Text
from sae.features.weights import of_latent
from sae.reading import read_object
from sae.tables import Column, Table

FACTS, TEXT, CO_FIRING = "facts.json", "text.safetensors", "co_firing.safetensors"


class Records:
    """Records of the latents that fire, one read each.

    Args:
        folder: Folder that `sae.features.records` wrote.
        weights: The file of `weight_statistics`.

    Raises:
        ArtifactError: If they are not complete, or damaged.

    `records[123]` is the record of latent 123, `records["-12"]` that of the negative side of 12.
    """

    def __init__(self, folder: str | Path, weights: str = "weights.safetensors"):
        self.folder, self.weights = Path(folder), weights
        self.facts = unseal(read_object(self.folder / FACTS), self.folder / FACTS)
        self.d_sae: int = self.facts["d_sae"]
        self.num_rows: int = self.facts["rows"]
        self._first = np.array(self.facts["groups"])
        self._group = lru_cache(2)(self._load_group)

    @cached_property
    def text(self) -> Text:
        """The text."""
        tensors = _arrays(self.folder / TEXT)
        ends = np.cumsum(tensors["token_bytes"])
        joined = tensors["bytes"].tobytes()
        starts = [0, *ends[:-1].tolist()]
        return Text(
            name=self.facts["text"], is_training=self.facts["split"] == "train",
            tokens=tensors["tokens"], counted=tensors["counted"],
            vocabulary=[joined[a:b] for a, b in zip(starts, ends.tolist(), strict=True)],
        )  # fmt: skip

    @cached_property
    def latents(self) -> list[str]:
        """Names of the latents that fire; silent ones have no record."""
        return [self.name_of(i) for i in self._alive.tolist()]

    @cached_property
    def _alive(self) -> np.ndarray:
        parts = [self._group(n)["latent"] for n in range(len(self._first))]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._alive)

    def __getitem__(self, latent: SupportsIndex | str) -> Record:
        index = self._index(latent)
        group = int(np.searchsorted(self._first, index, side="right")) - 1
        packed = self._group(group)
        i = int(np.searchsorted(packed["latent"], index))
        if i == len(packed["latent"]) or packed["latent"][i] != index:
            raise KeyError(f"Latent {latent} is silent on {self.facts['text']}.")
        return self._record(index, unpack(packed, i))

    def __iter__(self) -> Iterator[Record]:
        for group in range(len(self._first)):
            packed = self._group(group)
            for i, index in enumerate(packed["latent"].tolist()):
                yield self._record(index, unpack(packed, i))

    def firings(self, latent: SupportsIndex | str) -> Firings:
        """Every firing of a latent, by rows of the store."""
        index = self._index(latent)
        (found,) = self.firings_of(range(index, index + 1))
        return found

    def firings_of(self, indices: range) -> list[Firings]:
        """`firings` of latents that follow each other, by their indices."""
        return self._firings.read(indices)

    def locate(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Context and position of rows of the store."""
        return locate(row, self.facts["ctx"], self.facts["rows_per_context"])

    def groups(self) -> list[range]:
        """All latents, in the groups that lie in one file."""
        ends = [*self.facts["groups"][1:], self.facts["latents"]]
        return [range(*pair) for pair in zip(self.facts["groups"], ends, strict=True)]

    @property
    def indices(self) -> list[int]:
        """Indices of the latents that fire; d_sae + j is the negative side of latent j."""
        return self._alive.tolist()

    @cached_property
    def decile_edges(self) -> np.ndarray:
        """`Summary.decile_edges` of each latent that fires, [latents, 11]; rows as in `indices`."""
        parts = [self._group(n) for n in range(len(self._first))]
        found = [part["decile_edges"] for part in parts if len(part["latent"])]
        return np.concatenate(found) if found else np.zeros((0, DECILES + 1))

    def name_of(self, index: int) -> str:
        """The name of a latent by its index; d_sae + j is the negative side of latent j."""
        sign, latent = divmod(index, self.d_sae)
        return f"{'-' if sign else ''}{latent}"

    def table(self) -> Table:
        """Numbers of each latent that fires."""
        packed = [self._group(n) for n in range(len(self._first))]
        packed = [group for group in packed if len(group["latent"])]

        def joined(name: str) -> np.ndarray:
            """A row for each latent, as columns; its first one where there are several."""
            parts = [group[name].reshape(len(group["latent"]), -1)[:, 0] for group in packed]
            return np.concatenate(parts) if parts else np.zeros(0)

        firings = joined("firings")
        columns = {
            "latent": Column("string", "", self.latents),
            "firings": Column("int64", "", firings),
            "density": Column("float64", "share", firings / self.num_rows),
            "contexts_fired": Column("int64", "", joined("contexts_fired")),
            "max": Column("float64", "activation", joined("max")),
            "mean": Column("float64", "activation", joined("mean")),
            "top_token": Column("int64", "", joined("by_mass.ids")),
            "top_token_mass": Column("float64", "share", joined("by_mass.values")),
        }
        latent = self._alive % self.d_sae
        for name, unit in (("encoder_cosine", "cosine"), ("stability", "cosine")):
            if name in self._weights:
                columns[name] = Column("float64", unit, self._weights[name][latent])
        return Table(columns)

    def check(self) -> None:
        """Read every file but that of the weights.

        Raises:
            ArtifactError: If one is missing or damaged.
        """
        for n in range(len(self._first)):
            self._load_group(n)
        _ = self._together, self.text, self._firings

    def stability(self) -> dict[str, float]:
        """Mean over the latents that fire of their stability, and of a random dictionary's."""
        latent = self._alive % self.d_sae
        return {
            name: float(self._weights[name][latent].mean())
            for name in ("stability", "stability_random")
            if name in self._weights and len(latent)
        }

    @cached_property
    def _firings(self) -> FiringStore:
        return open_firings(self.folder, self.facts["latents"], self.facts["all_rows"])

    @cached_property
    def _weights(self) -> dict[str, np.ndarray]:
        return _arrays(self.folder / self.weights)

    @cached_property
    def _together(self) -> dict[str, np.ndarray]:
        return _arrays(self.folder / CO_FIRING)

    def _load_group(self, n: int) -> dict[str, np.ndarray]:
        return _arrays(group_file(self.folder, n))

    def _index(self, latent: SupportsIndex | str) -> int:
        word = str(latent)
        number = int(word.removeprefix("-")) if word.removeprefix("-").isdecimal() else -1
        if not 0 <= number < self.d_sae or (word.startswith("-") and not self.facts["signed"]):
            raise KeyError(f"There is no latent {latent}; latents are 0 to {self.d_sae - 1}.")
        return number + self.d_sae * word.startswith("-")

    def _record(self, index: int, summary: Summary) -> Record:
        negative, latent = divmod(index, self.d_sae)
        more: dict[str, Any] = of_latent(self._weights, latent, -1 if negative else 1)
        if self._together:
            there = self._together["count"][index] > 0
            side, other = np.divmod(self._together["latent"][index][there], self.d_sae)
            more["co_firing"] = Listed(other, self._together["count"][index][there])
            more["co_firing_negative"] = side[: None if self.facts["signed"] else 0] > 0
            more["jaccard"] = self._together["jaccard"][index][there]
        return Record(
            latent=latent, sign=-1 if negative else 1, density=summary.firings / self.num_rows,
            text=self.text, **vars(summary), **more,
        )  # fmt: skip


def group_file(folder: Path, n: int) -> Path:
    """The file of a group of latents."""
    return folder / f"group-{n:05d}.safetensors"


def _arrays(file: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_tensors(file)[0].items()}
