"""Files of other libraries, built from their documented keys, with a slow forward pass of each."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D_IN, D_SAE, K = 5, 9, 3
V6 = {"metadata": {"sae_lens_version": "6.1.0", "model_name": "gpt2", "context_size": 64,
                   "hook_name": "blocks.4.hook_resid_post"}}  # fmt: skip


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


W_ENC, B_ENC, B_DEC = numbers(0, D_IN, D_SAE), 0.3 * numbers(1, D_SAE), numbers(2, D_IN)
W_DEC = numbers(3, D_SAE, D_IN)
UNIT = W_DEC / W_DEC.norm(dim=1, keepdim=True)
THRESHOLD = 0.8 * numbers(4, D_SAE)  # some are negative
B_GATE, R_MAG, B_MAG = 0.5 * numbers(5, D_SAE), 0.3 * numbers(6, D_SAE), 0.5 * numbers(7, D_SAE)
ROTATION = torch.linalg.qr(numbers(8, D_IN, D_IN)).Q.contiguous()
SCALE = 0.5 + numbers(9, D_IN).abs()
X = 2 * numbers(10, 40, D_IN)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def ours(activation: str = "relu", **metadata: object) -> Any:
    from sae.dictionaries.sae import SAE, SAEConfig

    threshold = THRESHOLD.clamp(min=0) if activation == "jumprelu" else None
    return SAE(
        W_ENC, B_ENC, UNIT, B_DEC, threshold=threshold, metadata=metadata,
        config=SAEConfig("l1", activation, D_IN, D_SAE, K if "topk" in activation else None,
                         steps=3 if activation == "lista" else None),
    )  # fmt: skip


def made_of() -> dict:
    lm = {"kind": "hub", "name": "pythia-70m", "repo": "EleutherAI/pythia-70m-deduped"}
    return {"kind": "lm", "lm": lm, "corpus": {"name": "news"}, "point": "resid.4", "ctx": 128}


def pre_of(x, W, b):
    """Pre-activations, a sum at a time."""
    return [
        sum(float(x[i]) * float(W[i][j]) for i in range(D_IN)) + float(b[j]) for j in range(D_SAE)
    ]


def decoded(f, W, b):
    return [sum(f[j] * float(W[j][i]) for j in range(D_SAE)) + float(b[i]) for i in range(D_IN)]


def relu(pre):
    return [max(0.0, p) for p in pre]


def topk(pre):
    kept = sorted(range(D_SAE), key=lambda j: -pre[j])[:K]
    return [max(0.0, pre[j]) if j in kept else 0.0 for j in range(D_SAE)]


def abs_topk(pre):
    kept = sorted(range(D_SAE), key=lambda j: -abs(pre[j]))[:K]
    return [pre[j] if j in kept else 0.0 for j in range(D_SAE)]


def jump(pre, threshold):
    return [max(0.0, p) if p > float(t) else 0.0 for p, t in zip(pre, threshold, strict=True)]


def gate(x, *biases):
    """Gate and magnitude as arXiv 2404.16014 has them."""
    b_gate, r_mag, b_mag = (np.asarray(b, dtype=float) for b in biases)
    open_ = np.asarray(pre_of(x, W_ENC, b_gate)) > 0
    magnitude = np.asarray(pre_of(x, np.asarray(W_ENC) * np.exp(r_mag), b_mag))
    return list(np.where(open_, np.maximum(magnitude, 0), 0))


@dataclass
class Case:
    """One kind of file. `forward` gives the library's own f and x_hat of one vector.

    Attributes:
        write: Writes the file and gives the path that a user would name.
        rows: The decoder rows by whose length our f differs from theirs.
    """

    name: str
    write: Callable[[Path], Path]
    forward: Callable[[Any], tuple[list[float], list[float]]]
    rows: Tensor
    activation: str

    def __str__(self):
        return self.name


def saelens(config, tensors, scaler=None):
    def write(folder):
        folder.mkdir()
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors"
        )
        (folder / "cfg.json").write_text(json.dumps({"d_in": D_IN, "d_sae": D_SAE, **config}))
        if scaler is not None:
            text = json.dumps({"scaling_factor": scaler, "has_whitening": False})
            (folder / "activation_scaler.json").write_text(text)
        return folder

    return write


def dictionary_learning(word, state, **trainer):
    def write(folder):
        folder.mkdir()
        torch.save(state, folder / "ae.pt")
        trainer_ = {"dict_class": word, "lm_name": "EleutherAI/pythia-70m-deduped", "layer": 4,
                    "submodule_name": "resid_post_layer_4", **trainer}  # fmt: skip
        config = {"trainer": trainer_, "buffer": {"ctx_len": 128, "d_submodule": D_IN}}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def sparsify(**changes):
    def write(folder):
        folder = folder / "layers.4"
        folder.mkdir(parents=True)
        state = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "W_dec": UNIT,
                 "b_dec": B_DEC}  # fmt: skip
        save_file(state, folder / "sae.safetensors")
        config = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True,
                  "num_latents": D_SAE, "k": K, "multi_topk": False, "skip_connection": False,
                  "transcode": False, "d_in": D_IN, **changes}  # fmt: skip
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    return write


def openai(activation="ReLU", more=None):
    def write(folder):
        folder.mkdir()
        state = {"pre_bias": B_DEC, "latent_bias": B_ENC, "encoder.weight": W_ENC.T.contiguous(),
                 "decoder.weight": W_DEC.T.contiguous(), "activation": activation,
                 "stats_last_nonzero": torch.zeros(D_SAE, dtype=torch.long),
                 "latents_activation_frequency": torch.ones(D_SAE),
                 "latents_mean_square": torch.zeros(D_SAE),
                 "activation_state_dict": more or {}}  # fmt: skip
        torch.save(state, folder / "4.pt")
        return folder / "4.pt"

    return write


def authors(*members):
    """A list of objects of the authors' classes, which exist only while it is written."""

    def write(folder):
        folder.mkdir()
        modules = {name: ModuleType(name) for name in (
            "autoencoders", "autoencoders.learned_dict", "autoencoders.topk_encoder"
        )}  # fmt: skip
        sys.modules |= modules
        try:
            pairs = []
            for i, (word, state) in enumerate(members):
                name = "topk_encoder" if word == "TopKLearnedDict" else "learned_dict"
                module = modules[f"autoencoders.{name}"]
                cls = getattr(module, word, None) or type(word, (), {"__module__": module.__name__})
                setattr(module, word, cls)
                member = cls()
                vars(member).update(state, n_feats=D_SAE, activation_size=D_IN)
                hyper = {"dict_size": D_SAE, "l1_alpha": np.logspace(-4, -2, 16)[i]}
                pairs.append((member, hyper))
            torch.save(pairs, folder / "learned_dicts.pt")
        finally:
            for name in modules:
                del sys.modules[name]
        return folder

    return write


TIED = {"encoder": W_DEC, "encoder_bias": B_ENC, "norm_encoder": True}
CENTRED = TIED | {"center_trans": B_DEC, "center_rot": ROTATION, "center_scale": SCALE}
UNTIED = {"encoder": W_ENC.T.contiguous(), "decoder": W_DEC, "encoder_bias": B_ENC}
ZERO = torch.zeros(D_IN)


def centred(x):
    """The authors' `center`, their tied code, and `uncenter`."""
    z = [sum(float(ROTATION[c][u]) * float(x[u] - B_DEC[u]) for u in range(D_IN)) * float(SCALE[c])
         for c in range(D_IN)]  # fmt: skip
    f = relu(pre_of(z, UNIT.T, B_ENC))
    z_hat = decoded(f, UNIT, ZERO)
    x_hat = [sum(float(ROTATION[c][u]) * z_hat[c] / float(SCALE[c]) for c in range(D_IN))
             + float(B_DEC[u]) for u in range(D_IN)]  # fmt: skip
    return f, x_hat


def linear(code, W_dec=W_DEC, subtract=True, b_dec=B_DEC):
    """The forward pass of a library with this code: of `x - b_dec`, or of x."""

    def forward(x):
        f = code(x - b_dec if subtract else x)
        return f, decoded(f, W_dec, b_dec)

    return forward


def by_norm(x):
    """SAELens' topk with `rescale_acts_by_decoder_norm`; f is in units of unit rows already."""
    norms = W_DEC.norm(dim=1).tolist()
    f = topk([p * n for p, n in zip(pre_of(x - B_DEC, W_ENC, B_ENC), norms, strict=True)])
    return f, decoded(f, UNIT, B_DEC)


def batch_by_norm(x):
    norms = W_DEC.norm(dim=1).tolist()
    pre = [p * n for p, n in zip(pre_of(x - B_DEC, W_ENC, B_ENC), norms, strict=True)]
    f = jump(pre, [0.7] * D_SAE)
    return f, decoded(f, UNIT, B_DEC)


FOUR = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
GATED = {"W_enc": W_ENC, "b_gate": B_GATE, "r_mag": R_MAG, "b_mag": B_MAG, "W_dec": W_DEC,
         "b_dec": B_DEC}  # fmt: skip
LINEAR = {"encoder.weight": W_ENC.T.contiguous(), "decoder.weight": W_DEC.T.contiguous()}
UNIT_LINEAR = LINEAR | {"encoder.bias": B_ENC, "b_dec": B_DEC,
                        "decoder.weight": UNIT.T.contiguous()}  # fmt: skip
COUNTS = {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.9)}


def _pre(x):
    return pre_of(x, W_ENC, B_ENC)


CASES = [
    Case("saelens_standard", saelens({"architecture": "standard", **V6}, FOUR),
         linear(lambda x: relu(_pre(x))), W_DEC, "relu"),
    Case("saelens_no_subtraction",
         saelens({"architecture": "standard", "apply_b_dec_to_input": False, **V6}, FOUR),
         linear(lambda x: relu(_pre(x)), subtract=False), W_DEC, "relu"),
    Case("saelens_version_3",
         saelens({"activation_fn_str": "relu", "hook_point": "blocks.4.hook_resid_post",
                  "model_name": "gpt2", "normalize_activations": False}, FOUR),
         linear(lambda x: relu(_pre(x))), W_DEC, "relu"),
    Case("saelens_version_4_topk",
         saelens({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K},
                  "architecture": "standard"}, FOUR | {"W_dec": UNIT}),
         linear(lambda x: topk(_pre(x)), UNIT), UNIT, "topk"),
    Case("saelens_topk",
         saelens({"architecture": "topk", "k": K, **V6}, FOUR | {"W_dec": 3 * UNIT}),
         linear(lambda x: topk(_pre(x)), 3 * UNIT), 3 * UNIT, "topk"),
    Case("saelens_abstopk",
         saelens({"architecture": "abstopk", "k": K, **V6}, FOUR | {"W_dec": 3 * UNIT}),
         linear(lambda x: abs_topk(_pre(x)), 3 * UNIT), 3 * UNIT, "abs_topk"),
    Case("saelens_topk_by_norm",
         saelens({"architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}, FOUR),
         by_norm, UNIT, "topk"),
    Case("saelens_jumprelu", saelens({"architecture": "jumprelu", **V6},
                                     FOUR | {"threshold": THRESHOLD}),
         linear(lambda x: jump(_pre(x), THRESHOLD)), W_DEC, "jumprelu"),
    Case("saelens_gated", saelens({"architecture": "gated", **V6}, GATED),
         linear(lambda x: gate(x, B_GATE, R_MAG, B_MAG)), W_DEC, "jumprelu"),
    Case("saelens_batchtopk_checkpoint",
         saelens({"architecture": "batchtopk", "k": K, "rescale_acts_by_decoder_norm": True, **V6},
                 FOUR | {"topk_threshold": torch.tensor(0.7, dtype=torch.double)}),
         batch_by_norm, UNIT, "jumprelu"),
    Case("saelens_scaled",
         saelens({"architecture": "standard", "normalize_activations": "expected_average_only_in",
                  **V6}, FOUR, scaler=2.5),
         lambda x: (relu(_pre(2.5 * x - B_DEC)),
                    [v / 2.5 for v in decoded(relu(_pre(2.5 * x - B_DEC)), W_DEC, B_DEC)]),
         W_DEC / 2.5, "relu"),
    Case("dl_AutoEncoder",
         dictionary_learning("AutoEncoder", LINEAR | {"encoder.bias": B_ENC, "bias": B_DEC}),
         linear(lambda x: relu(_pre(x))), W_DEC, "relu"),
    Case("dl_AutoEncoderNew",
         dictionary_learning("AutoEncoderNew",
                             LINEAR | {"encoder.bias": B_ENC, "decoder.bias": B_DEC}),
         linear(lambda x: relu(_pre(x)), subtract=False), W_DEC, "relu"),
    Case("dl_GatedAutoEncoder",
         dictionary_learning("GatedAutoEncoder",
                             LINEAR | {"gate_bias": B_GATE, "r_mag": R_MAG, "mag_bias": B_MAG,
                                       "decoder_bias": B_DEC}),
         linear(lambda x: gate(x, B_GATE, R_MAG, B_MAG)), W_DEC, "jumprelu"),
    Case("dl_AutoEncoderTopK", dictionary_learning("AutoEncoderTopK", UNIT_LINEAR | COUNTS, k=K),
         linear(lambda x: topk(relu(_pre(x))), UNIT), UNIT, "topk"),
    Case("dl_BatchTopKSAE", dictionary_learning("BatchTopKSAE", UNIT_LINEAR | COUNTS, k=K),
         linear(lambda x: jump(_pre(x), [0.9] * D_SAE), UNIT), UNIT, "jumprelu"),
    Case("dl_JumpReluAutoEncoder",
         dictionary_learning("JumpReluAutoEncoder", FOUR | {"threshold": THRESHOLD}),
         linear(lambda x: jump(_pre(x), THRESHOLD), subtract=False), W_DEC, "jumprelu"),
    Case("dl_Matryoshka",
         dictionary_learning("MatryoshkaBatchTopKSAE",
                             FOUR | COUNTS | {"group_sizes": torch.tensor([4, 5])}, k=K),
         linear(lambda x: jump(_pre(x), [0.9] * D_SAE)), W_DEC, "jumprelu"),
    Case("sparsify", sparsify(), linear(lambda x: topk(relu(_pre(x))), UNIT), UNIT, "topk"),
    Case("openai", openai(), linear(lambda x: relu(_pre(x))), W_DEC, "relu"),
    Case("authors_TiedSAE", authors(("TiedSAE", TIED)),
         linear(lambda x: relu(pre_of(x, UNIT.T, B_ENC)), UNIT, b_dec=ZERO), UNIT, "relu"),
    Case("authors_centred", authors(("TiedSAE", CENTRED)), centred,
         (UNIT / SCALE) @ ROTATION, "relu"),
    Case("authors_UntiedSAE", authors(("UntiedSAE", UNTIED)),
         linear(lambda x: relu(_pre(x)), UNIT, b_dec=ZERO), UNIT, "relu"),
    Case("authors_TopK", authors(("TopKLearnedDict", {"dict": UNIT, "sparsity": K})),
         linear(lambda x: topk(pre_of(x, UNIT.T, torch.zeros(D_SAE))), UNIT, b_dec=ZERO),
         UNIT, "topk"),
]  # fmt: skip
