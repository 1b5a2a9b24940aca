"""Baselines in place of training: fit on the training split, keep costly fits for the next run."""

import logging
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from sae.activations.datamodule import ActivationDataModule
from sae.checksums import load_tensors, save_tensors
from sae.dictionaries.baselines import Baseline, Learned, build_baseline
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError
from sae.provenance import cache_dir, content_key

log = logging.getLogger(__name__)


class TrainingVectors:
    """The training rows of a data module, without its scale and order."""

    def __init__(self, data: ActivationDataModule):
        self._data, self._rows = data, data.rows("train")

    @property
    def d_in(self) -> int:
        """Their width."""
        return self._rows.d_in

    @property
    def num_rows(self) -> int:
        """How many there are."""
        return self._rows.num_rows

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Their mean, float64."""
        return torch.as_tensor(self._rows.stats.mean, dtype=torch.float64)

    def chunks(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """All of them, once, in stored order."""
        for i in range(self._rows.num_chunks):
            yield self._rows.read(i).float()

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_in"]:
        """So many of them at random, or all."""
        return self._data.sample_rows(min(n, self.num_rows), seed) / self._data.scale


def fit_baseline(config: Mapping[str, Any], data: ActivationDataModule) -> tuple[SAE, dict]:
    """Fit the baseline that the node `sae` names.

    Returns:
        The inference SAE, and what there is to say about the fit (plain JSON values).

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
        learned = _kept(content_key(identity), baseline, vectors)
    return baseline.assemble(learned), learned.facts


def _kept(key: str, baseline: Baseline, vectors: TrainingVectors) -> Learned:
    """What an earlier run learned, or learn it: jobs of a sweep over k share one fit."""
    file = cache_dir() / "baselines" / f"{baseline.word}-{key}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        if file.exists():
            try:
                learned = Learned(*load_tensors(file))
            except ArtifactError as error:
                log.warning("%s It is fitted again.", error)
            else:
                log.info("sae=%s was fitted to these vectors before: %s", baseline.word, file)
                return learned
        learned = baseline.learn(vectors)
        temporary = file.with_suffix(".tmp")
        save_tensors(temporary, learned.tensors, learned.facts)
        temporary.replace(file)
    return learned
