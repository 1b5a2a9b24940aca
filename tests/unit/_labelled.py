"""Labelled texts and SAEs with planted features, for tests of evaluations that use labels."""

from typing import Any

import numpy as np
import torch
from _evals import Rows, place

from sae.activations.counted import Counted, RowRule
from sae.dictionaries.sae import SAE, SAEConfig
from sae.evals import PlacedSAE
from sae.tasks.labelled import LabelledTexts
from sae.types import Point

POINT = Point("resid", 1)


def words(num_per_class: int, classes: tuple[str, ...] = ("no", "yes"), seed: int = 0):
    """Texts of random letters, whose last letter tells the class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(classes)), num_per_class))
    texts = [
        "".join(rng.choice(list("abcdefgh"), size=rng.integers(2, 9))) + "xyzuvw"[label]
        for label in labels
    ]
    return LabelledTexts.of("words", texts, [classes[label] for label in labels])


def context_of(sae: SAE, lm: Any, limit: float | None = None) -> PlacedSAE:
    counted = None if limit is None else Counted(RowRule(), (), {str(POINT): limit})
    rows = Rows(torch.zeros(1, sae.d_in), None)
    return place(sae, POINT, rows, None, lambda: lm, counted=counted)


def planted(directions: torch.Tensor, thresholds: torch.Tensor, noise: int = 30, seed: int = 0):
    """An SAE whose first latents read the given unit directions, behind them random other ones."""
    generator = torch.Generator().manual_seed(seed)
    d_in = directions.shape[1]
    others = torch.randn(noise, d_in, generator=generator)
    others = others - others @ directions.T @ directions
    W_dec = torch.cat([directions, others])
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    b_enc = torch.cat([-thresholds, torch.zeros(noise)])
    W_enc = torch.cat([directions, others]).T.contiguous()
    config = SAEConfig("l1", "relu", d_in, len(W_dec))
    return SAE(W_enc, b_enc, W_dec, torch.zeros(d_in), config)
