"""An SAE on a tiny LM whose latents fire now and then, for the tests of records."""

import pytest
import torch

from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SAEConfig
from sae.features.firings import SIGNED
from sae.types import Point

POINT, CTX = Point("resid", 1), 16


@pytest.fixture
def source(tiny_source, random_corpus):
    made = LMActivations(
        tiny_source("gpt2"), random_corpus(), POINT, tokens=16_384, val_tokens=256,
        test_tokens=2048, ctx=CTX, dtype="float32",
    )  # fmt: skip
    made.prepare()
    return made


def make_sae(source, activation="relu", d_sae=48, seed=0, **more):
    """Latents that fire now and then: biases at a quantile of their pre-activations."""
    rows = source.split("train")
    x = torch.cat([rows.read(i) for i in range(rows.num_chunks)]).float()
    generator = torch.Generator().manual_seed(10 + seed)
    W_dec = torch.randn(d_sae, x.shape[1], generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    pre = x @ W_dec.T
    dense = activation in SIGNED
    b_enc = -(pre.mean(0) if dense else pre.quantile(0.95, dim=0))
    b_enc[-1] -= 0 if dense else 1e6  # silent
    config = SAEConfig("test", activation, x.shape[1], d_sae, **more)
    return SAE(W_dec.T.contiguous(), b_enc, W_dec, torch.zeros(x.shape[1]), config)


def placed_on(source, sae):
    return PlacedSAE(sae, source)
