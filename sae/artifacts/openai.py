"""OpenAI's sparse_autoencoder: one `.pt` file with a state dict, or the folder that it is in."""

from pathlib import Path

import torch

from sae.artifacts.files import read_torch, reject_others, state_of, taken
from sae.artifacts.folding import Weights, fold, require, tensors_of
from sae.artifacts.format import Format
from sae.artifacts.places import Place, described
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError
from sae.intact import visible

FILE = "autoencoder.pt"
_COUNTS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
"""Tensors that it counts in training, and does not compute with."""


def load(path: Path) -> SAE:
    """Read a ReLU autoencoder.

    Raises:
        ArtifactError: If it is damaged, or of its TopK kind, which normalises each input.
    """
    file = _file(path)
    if file is None:
        raise ArtifactError(f"{path} must be a .pt file, or a folder that holds one .pt file.")
    state = state_of(read_torch(file), file)
    word = state.get("activation", "ReLU")
    if word == "TopK":
        raise ArtifactError(
            f"{file} is a TopK autoencoder, which subtracts the mean of every input vector and "
            "divides by its standard deviation. That is not linear, so that it cannot be folded "
            "into the weights. Its ReLU autoencoders can be read."
        )
    if word != "ReLU":
        raise ArtifactError(
            f"{file}: activation={word!r} cannot be read: latents may be negative, or it is not "
            "known. Only ReLU can be read."
        )
    names = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
    encoder, b_enc, decoder, b_dec = taken(state, names, file)
    reject_others(state, (*names, *_COUNTS), file)
    weights = Weights(encoder.T, b_enc, decoder.T, b_dec, "ReLU", subtracts_b_dec=True)
    return fold(weights, described("openai", Place()), file)


def save(folder: Path, sae: SAE) -> None:
    """Write a state dict that `Autoencoder.from_state_dict` reads; not TopK, normalised there."""
    require(sae, ("relu",), "openai")
    tensors = tensors_of(sae, subtracts_b_dec=True)
    state = {
        "pre_bias": tensors["b_dec"],
        "latent_bias": tensors["b_enc"],
        "stats_last_nonzero": torch.zeros(sae.d_sae, dtype=torch.long),
        "latents_activation_frequency": torch.ones(sae.d_sae),
        "latents_mean_square": torch.zeros(sae.d_sae),
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "decoder.weight": tensors["W_dec"].T.contiguous(),
        "activation": "ReLU",
        "activation_state_dict": {},
    }
    torch.save(state, folder / FILE)


def _file(path: Path) -> Path | None:
    if path.is_dir():
        files = sorted(visible(path.glob("*.pt"), path))
        return files[0] if len(files) == 1 else None
    return path if path.suffix == ".pt" else None


def _looks_like(path: Path) -> bool:
    file = _file(path)
    if file is None or not file.is_file():
        return False
    try:
        content = read_torch(file)
    except ArtifactError:
        return False
    return isinstance(content, dict) and {"pre_bias", "latent_bias"} <= content.keys()


FORMAT = Format("openai", _looks_like, load, save)
