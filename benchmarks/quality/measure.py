"""Numbers of a trained dictionary on held-out vectors."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.quality.contender import Fitted
from benchmarks.quality.data import SYNTHETIC, Data, lm_source
from sae.activations.sources import LMActivations
from sae.evals.predictions import measure as measure_predictions
from sae.interventions import Spliced
from sae.metrics import Reconstruction
from sae.types import Split

RECOVERED = 0.9
"""Cosine from which on a feature counts as recovered."""
_ROWS = 2048


@torch.no_grad()
def measured(fitted: Fitted, data: Data, split: Split) -> dict[str, float]:
    """FVU in the LM's own units, L0, silent share, and on synthetic data recovery both ways."""
    metric = Reconstruction(d_in=data.d_in)
    counts = torch.zeros(len(fitted.atoms), dtype=torch.long)
    for x in _pieces(data.held_out(split)):
        code = fitted.encode(x * fitted.factor)
        fires = code != 0
        x_hat = fitted.decode(code).float() / fitted.factor
        metric.update(x, x_hat, fires.sum(1))
        counts += fires.sum(0)
    computed = metric.compute()
    values = {name: _number(computed[name]) for name in ("fvu", "l0")}
    values["silent"] = (counts == 0).double().mean().item()
    features = data.features()
    if features is not None:
        values |= recovery(features, fitted.atoms[counts > 0])
    return values


def recovery(
    features: Float[Tensor, "num_features d_in"], atoms: Float[Tensor, "alive d_in"]
) -> dict[str, float]:
    """How many features have an atom near them, and how many atoms a feature.

    Returns:
        `recovered`: share of features whose best atom has a cosine above 0.9; `true_atoms`: share
        of atoms whose best feature has one; `mmcs`: mean over features of the best cosine.

    Example:
        >>> recovery(torch.eye(4), torch.eye(4)[:2])
        {'recovered': 0.5, 'true_atoms': 1.0, 'mmcs': 0.5}
    """
    if not len(atoms):
        return {"recovered": 0.0, "true_atoms": 0.0, "mmcs": 0.0}
    normalize = torch.nn.functional.normalize
    cosine = normalize(features.float(), dim=1) @ normalize(atoms.float(), dim=1).T
    best, best_of_atom = cosine.amax(1), cosine.amax(0)
    return {
        "recovered": (best > RECOVERED).double().mean().item(),
        "true_atoms": (best_of_atom > RECOVERED).double().mean().item(),
        "mmcs": best.double().mean().item(),
    }


@torch.no_grad()
def ce_recovered(fitted: Fitted, data: Data, contexts: int) -> dict[str, float]:
    """Share of the cross entropy that ablation costs and the dictionary gives back.

    Rows that do not count stay as they are under every condition: no dictionary has seen one.
    """
    assert data.name != SYNTHETIC
    source: LMActivations = lm_source(data.name)

    def splice(x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).float()
        x_hat = fitted.decode(fitted.encode(flat * fitted.factor)).float() / fitted.factor
        return x_hat.reshape(x.shape)

    store = source.store("test")
    mean = torch.as_tensor(source.split("test").stats.mean).float()
    metric: Any = measure_predictions(
        source.load_lm("cpu"), store, [Spliced(source.ends, splice, mean, source.counted)],
        num_tokens=contexts * store.spec.ctx, batch_contexts=8, quiet=True,
    )  # fmt: skip
    values = metric.compute()
    return {name: float(values[name]) for name in ("ce_recovered_zero", "ce_recovered_mean")}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _pieces(chunks: Iterator[Tensor]) -> Iterator[Tensor]:
    for chunk in chunks:
        yield from chunk.split(_ROWS)
