"""One table of all architectures: what the contract tests need to know of each.

A new architecture is a file, a yaml and its entry here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae.dictionaries import ARCHITECTURES, build_dictionary
from sae.dictionaries.sae import smooth_jump

D_IN, RATIO = 8, 3
D_SAE = D_IN * RATIO
WEIGHT = 1e-2
"""Coefficient of every penalty in the table."""


class Batch(NamedTuple):
    """Inputs, what they are compared with, the code and its reconstruction, the dead latents."""

    x: Tensor
    y: Tensor
    f: Tensor
    y_hat: Tensor
    dead: Tensor | None = None


@dataclass(frozen=True)
class Case:
    """An architecture in small.

    Attributes:
        settings: To build it with; `WEIGHT` weighs the penalty.
        code: f of a batch in training by plain dense products: `code(dictionary, x)`.
        terms: Loss terms beside the reconstruction by dense products, at full penalty:
            `terms(dictionary, batch)`.
        estimated: Whether gradients are estimates instead of slopes of the loss.
        gain: Whether f holds a latent's whole strength, whatever the length of its decoder row.
    """

    settings: dict[str, Any]
    code: Callable[[Any, Tensor], Tensor]
    terms: Callable[[Any, Batch], dict[str, Tensor]]
    estimated: bool = False
    gain: bool = False


def base(dictionary, x):
    """What an untied dictionary gives where nothing fires."""
    if dictionary.W_skip is None:
        return dictionary.b_dec
    return (x - dictionary.shift) @ dictionary.W_skip + dictionary.b_dec


def pre(dictionary, x):
    return (x - dictionary.shift) @ dictionary.W_enc + dictionary.b_enc


def tied_pre(dictionary, x):
    W = dictionary.W / dictionary.W.norm(dim=1, keepdim=True)
    return (x - dictionary.centre) @ W.T + dictionary.b_enc


def relu(dictionary, x):
    return pre(dictionary, x).relu()


def tied(dictionary, x):
    return tied_pre(dictionary, x).relu()


def without_shift(dictionary, x):
    return (x @ dictionary.W_enc + dictionary.b_enc).relu()


def largest_of_each(dictionary, x):
    values = pre(dictionary, x)
    ranks = values.argsort(dim=1, descending=True).argsort(dim=1)
    return (values * (ranks < dictionary.config.k)).relu()


def largest_of_all(dictionary, x):
    values = pre(dictionary, x)
    smallest = values.flatten().topk(dictionary.config.k * len(x)).values.min()
    return (values * (values >= smallest)).relu()


def open_gates(dictionary, x):
    pi = pre(dictionary, x)
    magnitude = dictionary.r_mag.exp() * (pi - dictionary.b_enc) + dictionary.b_mag
    return (pi > 0) * magnitude.relu()


def above_threshold(dictionary, x):
    values = pre(dictionary, x)
    return values * (values > dictionary.thresholds())


def refined(dictionary, x):
    f = relu(dictionary, x)
    for _ in range(dictionary.config.steps):
        missed = x - f @ dictionary.W_dec - dictionary.b_dec
        f = (f + missed @ dictionary.W_enc + dictionary.b_enc).relu()
    return f


def smooth(dictionary, x):
    t, gain = dictionary.log_threshold.exp(), dictionary.log_gain.exp()
    return gain * smooth_jump(tied_pre(dictionary, x), t)


def l1(dictionary, batch):
    del dictionary
    return {"sparsity": WEIGHT * batch.f.sum(1).mean()}


def l1_of_norms(dictionary, batch):
    widths = getattr(dictionary, "widths", [dictionary.W_dec.shape[1]])
    norms = sum(part.norm(dim=1) for part in dictionary.W_dec.split(widths, 1))
    return {"sparsity": WEIGHT * (batch.f * norms).sum(1).mean()}


def l0(dictionary, batch):
    del dictionary
    return {"sparsity": WEIGHT * (batch.f != 0).sum(1).to(batch.f.dtype).mean()}


def gate(dictionary, batch):
    opened = pre(dictionary, batch.x).relu()
    by_gate = opened @ dictionary.W_dec + base(dictionary, batch.x)
    return {
        "sparsity": WEIGHT * opened.sum(1).mean(),
        "gate": (batch.y - by_gate).square().mean(),
    }


def auxk(dictionary, batch):
    if batch.dead is None:
        return {}
    values = pre(dictionary, batch.x).masked_fill(~batch.dead, -torch.inf)
    top = values.topk(min(int(batch.dead.sum()), max(1, dictionary.d_in // 2)))
    f = torch.zeros_like(values).scatter(1, top.indices, top.values.relu())
    missed = (batch.y - batch.y_hat).detach() - f @ dictionary.W_dec
    return {"auxk": dictionary.config.auxk * missed.square().mean()}


def multi_k(dictionary, batch):
    if not dictionary.config.multi_k:
        return auxk(dictionary, batch)
    top = (values := pre(dictionary, batch.x)).topk(4 * dictionary.config.k)
    larger = torch.zeros_like(values).scatter(1, top.indices, top.values.relu())
    y_hat = larger @ dictionary.W_dec + base(dictionary, batch.x)
    return {"multi_k": (batch.y - y_hat).square().mean() / 8, **auxk(dictionary, batch)}


def prefixes(dictionary, batch):
    ends = [round(share * dictionary.d_sae) for share in (0.25, 0.5)]
    parts = (batch.f[:, :end] @ dictionary.W_dec[:end] for end in ends)
    y_hats = [part + base(dictionary, batch.x) for part in parts]
    errors = sum((batch.y - y_hat).square().mean() for y_hat in y_hats)
    return {"prefixes": errors, **auxk(dictionary, batch)}


L1, AUXK = {"l1": WEIGHT}, {"k": 4, "auxk": 1 / 32}
CASES = {
    "tied": Case({**L1, "centre": "none"}, tied, l1),
    "l1": Case(L1, relu, l1),
    "topk": Case({**AUXK, "multi_k": False}, largest_of_each, multi_k),
    "batch_topk": Case(AUXK, largest_of_all, auxk),
    "matryoshka": Case({**AUXK, "prefixes": [0.25, 0.5, 1.0]}, largest_of_all, prefixes),
    "april": Case(L1, without_shift, l1_of_norms),
    "crosscoder": Case(L1, without_shift, l1_of_norms),
    "gated": Case(L1, open_gates, gate),
    "p_anneal": Case({**L1, "p_end": 0.2, "anneal_start": 0.2}, relu, l1),
    "jumprelu": Case(
        {"l0_coefficient": WEIGHT, "penalty": "l0", "bandwidth": 0.1, "threshold": 0.1},
        above_threshold, l0, estimated=True,
    ),
    "lista": Case({**L1, "steps": 2}, refined, l1),
    "thresholding": Case({**L1, "centre": "none", "start_bias": -1.0}, smooth, l1, gain=True),
    "positive_tied": Case({**L1, "shift": 0.18}, tied, l1),
}  # fmt: skip
UNTIED = sorted(word for word in CASES if ARCHITECTURES[word].encoder)
TRANSCODERS = sorted(word for word in CASES if ARCHITECTURES[word].transcodes)
PENALISED = sorted(word for word in CASES if ARCHITECTURES[word].coefficient)
WITH_AUXK = sorted(word for word in CASES if "auxk" in CASES[word].settings)


def config_of(word, **changes):
    """A configuration of this architecture in small."""
    return {"architecture": word, "dict_ratio": RATIO, **CASES[word].settings, **changes}


def build(word, **changes):
    mean = torch.full((D_IN,), 0.1)
    return build_dictionary(config_of(word, **changes), d_in=D_IN, mean=mean, seed=3)


def x_of(rows=12, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D_IN, generator=generator, dtype=dtype)


def expected_terms(word, dictionary, x, y, output, *, penalty=1.0, dead=None):
    """Every loss term by dense products, the reconstruction's too."""
    batch = Batch(x, y, output.code.dense(), output.x_hat, dead)
    terms = CASES[word].terms(dictionary, batch)
    if "sparsity" in terms:
        terms["sparsity"] = penalty * terms["sparsity"]
    return {"reconstruction": (y - output.x_hat).square().sum() / y.numel(), **terms}
