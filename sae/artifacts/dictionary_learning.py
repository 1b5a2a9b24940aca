"""dictionary_learning (Marks, Karvonen, Mueller): a folder with `ae.pt` and `config.json`.

A file of the same kind, such as `checkpoints/ae_1000.pt`, is read too.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.artifacts.files import (
    read_torch,
    reject_others,
    state_of,
    taken,
    warn_of_flags,
    whole,
)
from sae.artifacts.folding import Weights, fold, gated, require, tensors_of
from sae.artifacts.format import Format
from sae.artifacts.places import Place, described, hook_of, place_of
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError
from sae.provenance import write_json
from sae.reading import read_object
from sae.types import Point

WEIGHTS, CONFIG = "ae.pt", "config.json"
_ACTIVATIONS = ("relu", "topk", "jumprelu")
_COUNTS = ("k", "threshold", "group_sizes")
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_TENSORS = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", "gate_bias", "r_mag", "mag_bias",
                         "decoder_bias"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec", *_COUNTS),
    "BatchTopKSAE": (*_LINEAR, "b_dec", *_COUNTS),
    "JumpReluAutoEncoder": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "MatryoshkaBatchTopKSAE": ("W_enc", "b_enc", "W_dec", "b_dec", *_COUNTS),
}  # fmt: skip
"""The tensors of each class that is read."""
_SETTINGS = """
dict_class trainer_class activation_dim dict_size k layer lm_name submodule_name wandb_name
device seed lr steps warmup_steps decay_start resample_steps l1_penalty initial_penalty
penalty_coef sparsity_penalty sparsity_warmup_steps sparsity_function sparsity_coefficient
sparsity_queue_length p_start p_end anneal_start anneal_end n_sparsity_updates bandwidth
target_l0 auxk_alpha top_k_aux threshold_beta threshold_start_step group_fractions group_weights
group_sizes
"""
"""Settings of its trainers that are read, or without effect on what a trained dictionary does."""


def load(path: Path) -> SAE:
    """Read one of its classes, told apart by the tensors and by the name of the class.

    BatchTopK and Matryoshka encode as they do by default: with their threshold.

    Raises:
        ArtifactError: If it is damaged, or of no known class.
    """
    file = path / WEIGHTS if path.is_dir() else path
    state = state_of(read_torch(file), file)
    beside = file.with_name(CONFIG)
    config = read_object(beside) if beside.is_file() else {}
    trainer = config.get("trainer") or {}
    warn_of_flags(trainer, _SETTINGS.split(), beside)
    weights = _weights(state, trainer, file)
    layer, submodule = trainer.get("layer"), trainer.get("submodule_name")
    is_residual = re.fullmatch(r"resid_post_layer_\d+", str(submodule)) is not None
    point = Point("resid", layer) if is_residual and isinstance(layer, int) else None
    ctx = (config.get("buffer") or {}).get("ctx_len")
    place = Place.said(trainer.get("lm_name"), point, ctx)
    return fold(weights, described("dictionary_learning", place, submodule=submodule), file)


def save(folder: Path, sae: SAE) -> None:
    """Write an AutoEncoder, AutoEncoderTopK or JumpReluAutoEncoder."""
    require(sae, _ACTIVATIONS, "dictionary_learning")
    place, word = place_of(sae), sae.config.activation
    tensors = tensors_of(sae, subtracts_b_dec=word != "jumprelu")
    linear = {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].T.contiguous(),
    }
    if word == "relu":
        kind, state = "AutoEncoder", {**linear, "bias": tensors["b_dec"]}
    elif word == "topk":
        kind, state = "AutoEncoderTopK", {**linear, "b_dec": tensors["b_dec"]}
        state["k"] = torch.tensor(sae.config.k, dtype=torch.int)
        state["threshold"] = torch.tensor(-1.0)
    else:
        kind, state = "JumpReluAutoEncoder", tensors
    trainer = {
        "dict_class": kind,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        "lm_name": place.lm,
        "layer": place.point.layer if place.point else None,
        "submodule_name": _submodule(place.point),
    }
    if sae.config.k is not None:
        trainer["k"] = sae.config.k
    torch.save(state, folder / WEIGHTS)
    buffer = {"d_submodule": sae.d_in, "ctx_len": place.ctx}
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": buffer})


def _submodule(point: Point | None) -> str | None:
    if point is None:
        return None
    return f"resid_post_layer_{point.layer}" if point.site == "resid" else hook_of(point)


def _looks_like(path: Path) -> bool:
    if path.is_dir():
        return (path / WEIGHTS).is_file()
    return path.is_file() and re.fullmatch(r"ae(_\d+)?\.pt", path.name) is not None


def _weights(state: Mapping[str, Any], trainer: Mapping[str, Any], file: Path) -> Weights:
    word = trainer.get("dict_class") or _class_of(state)
    if word not in (*_TENSORS, "unknown"):
        raise ArtifactError(
            f"{file} is of the class {word}, which cannot be read. Classes that can: "
            f"{', '.join(_TENSORS)}."
        )
    if word in _TENSORS:
        reject_others(state, _TENSORS[word], file)
    if "W_enc" in state:
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
        W_enc, b_enc, W_dec, b_dec, threshold = taken(state, names, file)
        matryoshka = "group_sizes" in state
        return Weights(
            W_enc, b_enc, W_dec, b_dec, word, "jumprelu",
            subtracts_b_dec=matryoshka, threshold=threshold,
        )  # fmt: skip
    encoder, decoder = taken(state, ("encoder.weight", "decoder.weight"), file)
    W_enc, W_dec = encoder.T, decoder.T
    if "r_mag" in state:
        names = ("gate_bias", "r_mag", "mag_bias", "decoder_bias")
        gate, r_mag, mag, b_dec = taken(state, names, file)
        W_enc, b_enc, threshold = gated(W_enc, gate, r_mag, mag)
        return Weights(
            W_enc, b_enc, W_dec, b_dec, word, "jumprelu", subtracts_b_dec=True, threshold=threshold
        )
    if "k" in state or word in ("AutoEncoderTopK", "BatchTopKSAE"):
        return _topk(state, trainer, word, W_enc, W_dec, file)
    b_enc = taken(state, ("encoder.bias",), file)[0]
    if "decoder.bias" in state:  # AutoEncoderNew does not subtract it
        b_dec = taken(state, ("decoder.bias",), file)[0]
        return Weights(W_enc, b_enc, W_dec, b_dec, word)
    b_dec = taken(state, ("bias",), file)[0]
    return Weights(W_enc, b_enc, W_dec, b_dec, word, subtracts_b_dec=True)


def _topk(
    state: Mapping[str, Any], trainer: Mapping[str, Any], word: str, W_enc: Tensor, W_dec: Tensor,
    file: Path,
) -> Weights:  # fmt: skip
    """AutoEncoderTopK and BatchTopKSAE have the same tensors and encode differently."""
    b_enc, b_dec = taken(state, ("encoder.bias", "b_dec"), file)
    if word == "BatchTopKSAE":
        threshold = taken(state, ("threshold",), file)[0]
        return Weights(
            W_enc, b_enc, W_dec, b_dec, word, "jumprelu", subtracts_b_dec=True, threshold=threshold
        )
    if word != "AutoEncoderTopK":
        raise ArtifactError(
            f"{file} may be of AutoEncoderTopK or of BatchTopKSAE, which have the same tensors. "
            f"{file.with_name(CONFIG)} must say which: "
            '{"trainer": {"dict_class": "AutoEncoderTopK"}}, for example.'
        )
    k = whole({"k": state.get("k", trainer.get("k"))}, "k", file)
    return Weights(W_enc, b_enc, W_dec, b_dec, word, "topk", subtracts_b_dec=True, k=k)


def _class_of(state: Mapping[str, Any]) -> str:
    if "group_sizes" in state:
        return "MatryoshkaBatchTopKSAE"
    if "r_mag" in state:
        return "GatedAutoEncoder"
    if "W_enc" in state:
        return "JumpReluAutoEncoder"
    if "k" in state:
        return "unknown"
    return "AutoEncoderNew" if "decoder.bias" in state else "AutoEncoder"


FORMAT = Format("dictionary_learning", _looks_like, load, save)
