"""Baselines in place of training: fit on the training split, keep costly fits for the next run."""

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.datamodule import ActivationDataModule
from sae.cached import cached
from sae.dictionaries.baselines import Learned, build_baseline
from sae.dictionaries.sae import SAE


class TrainingVectors:
    """The training rows of a data module, without its scale and order."""

    def __init__(self, data: ActivationDataModule):
        self._data, self._rows = data, data.rows("train")

    @property
    def d_in(self) -> int:
        """Width of the rows."""
        return self._rows.d_in

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self._rows.num_rows

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Mean of the rows, float64."""
        return torch.as_tensor(self._rows.stats.mean, dtype=torch.float64)

    def chunks(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All rows in stored order, chunk by chunk."""
        for i in range(self._rows.num_chunks):
            yield self._rows.read(i).float()

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """Random rows, `num_rows` of them, or all."""
        return self._data.draw_rows(min(n, self.num_rows), seed) / self._data.scale


def fit_baseline(config: Mapping[str, Any], data: ActivationDataModule) -> tuple[SAE, dict]:
    """Fit the baseline that the node `sae` names.

    Returns:
        The inference SAE, and facts about the fit (plain JSON values).

    Raises:
        ConfigError: If a setting is unknown, or does not fit the width of the activations.
    """
    baseline, vectors = build_baseline(config["sae"]), TrainingVectors(data)
    baseline.check(vectors.d_in)
    if not baseline.costly:
        learned = baseline.learn(vectors)
    else:
        identity = baseline.decides() | {"data": data.source.describe()["key"]}
        identity |= {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
        name = f"baselines/{baseline.word}-"  # jobs of a sweep over k share one fit
        learned = Learned(*cached(name, identity, lambda: baseline.learn(vectors)))
    return baseline.assemble(learned), learned.facts
