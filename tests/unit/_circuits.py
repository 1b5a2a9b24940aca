"""SAEs on layers of one tiny LM, and an LM with a planted circuit."""

import torch
from torch.nn.functional import normalize

from sae.activations.sources import LMActivations
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE, SAEConfig
from sae.language import GivenLM
from sae.language.lm import LanguageModel
from sae.types import Point

CTX, D = 16, 32
UPSTREAM, COMPANY, MIDDLE, TARGET = 3, 7, 5, 9
"""Latents of `planted`, of layers 0, 0, 1 and 2."""


def place(lm_source, corpus, layer, make, site="resid", max_norm=10.0):
    """The SAE that `make` gives for the training rows of a point, at its place."""
    source = LMActivations(
        lm_source, corpus, Point(site, layer), tokens=4096, val_tokens=256, test_tokens=2048,
        ctx=CTX, dtype="float32", max_norm=max_norm,
    )  # fmt: skip
    source.prepare()
    rows = source.split("train")
    x = torch.cat([rows.read(i) for i in range(rows.num_chunks)]).float()
    return PlacedSAE(make(x), source, f"{site} {layer}")


def sae_at(x, seed=0, d_sae=24, own=None, fires=0.1):
    """Random atoms, each of which fires on a share of the rows; `own` are atoms with thresholds."""
    own = own or {}
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(d_sae, x.shape[1], generator=generator)
    for atom, _ in own.values():  # the others know nothing of these
        W_dec -= (W_dec @ atom)[:, None] * atom
    W_dec = normalize(W_dec, dim=1)
    b_enc = -(x @ W_dec.T).quantile(1 - fires, dim=0)
    for latent, (atom, threshold) in own.items():
        W_dec[latent], b_enc[latent] = atom, -threshold
    config = SAEConfig("test", "relu", x.shape[1], d_sae)
    return SAE(W_dec.T.contiguous(), b_enc, W_dec, torch.zeros(x.shape[1]), config)


def planted(tiny_source, corpus):
    """An LM whose block 1 writes v where the stream has u, and SAEs of its three layers.

    The tokens a to e have u, and a little of w beside it. Latent UPSTREAM of layer 0 is u and
    COMPANY is w, which fires on the same rows and drives nothing. MIDDLE of layer 1 and TARGET of
    layer 2 are both v: block 2 does nothing.
    """
    lm = tiny_source("gpt2").load()
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(
        torch.cat([torch.ones(D, 1), torch.randn(D, 3, generator=generator)], dim=1)
    )[0]
    u, v, w = basis[:, 1:].T  # without a mean, which norms take off
    model = lm.model.transformer
    model.wpe.weight.zero_()
    embedded = torch.randn(len(model.wte.weight), D, generator=generator) / 3
    embedded -= embedded @ basis @ basis.T
    embedded[65:70] += 3 * u + 0.3 * w
    model.wte.weight.copy_(embedded)
    for block in model.h:
        for part in (block.attn.c_proj, block.mlp.c_proj):
            part.weight.zero_()
            part.bias.zero_()
    mlp = model.h[1].mlp
    mlp.c_fc.weight[:, 0], mlp.c_fc.bias[0] = u, -2.0
    mlp.c_proj.weight[0] = 2 * v
    source = GivenLM(LanguageModel(lm.model, lm.tokenizer, name="planted"))
    owns = [
        {UPSTREAM: (u, 0.5), COMPANY: (w, 0.1)}, {MIDDLE: (v, 0.2)}, {TARGET: (v, 0.2)},
    ]  # fmt: skip
    return [
        place(source, corpus, layer, lambda x, own=own, layer=layer: sae_at(x, layer, own=own))
        for layer, own in enumerate(owns)
    ]
