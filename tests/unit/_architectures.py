"""Every architecture in small, for tests that hold for all of them."""

import torch

from sae.dictionaries import build_dictionary

D_IN, RATIO = 8, 3
D_SAE = D_IN * RATIO

SETTINGS = {
    "tied": {"l1": 1e-2, "centre": "none"},
    "l1": {"l1": 1e-2},
    "topk": {"k": 4, "auxk": 1 / 32, "multi_k": False},
    "batch_topk": {"k": 4, "auxk": 1 / 32},
    "matryoshka": {"k": 4, "auxk": 1 / 32, "prefixes": [0.25, 0.5, 1.0]},
    "april": {"l1": 1e-2},
    "crosscoder": {"l1": 1e-2},
    "gated": {"l1": 1e-2},
    "p_anneal": {"l1": 1e-2, "p_end": 0.2, "anneal_start": 0.2},
    "jumprelu": {"l0_coefficient": 1e-2, "penalty": "l0", "bandwidth": 0.1, "threshold": 0.1},
    "lista": {"l1": 1e-2, "steps": 2},
    "thresholding": {"l1": 1e-2, "centre": "none", "start_bias": -1.0},
    "positive_tied": {"l1": 1e-2, "shift": 0.18},
}


def build(word, **changes):
    settings = SETTINGS[word] | changes
    config = {"architecture": word, "dict_ratio": RATIO, **settings}
    return build_dictionary(config, d_in=D_IN, mean=torch.full((D_IN,), 0.1), seed=3)


def x_of(rows=12, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D_IN, generator=generator, dtype=dtype)
