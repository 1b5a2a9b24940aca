"""sparsify (`eai-sparsify`, EleutherAI): a folder with `cfg.json` and `sae.safetensors`."""

from pathlib import Path

from sae.artifacts.files import (
    read_safetensors,
    reject_flags,
    reject_others,
    taken,
    whole,
    write_safetensors,
)
from sae.artifacts.folding import Weights, fold, require, tensors_of
from sae.artifacts.format import Format
from sae.artifacts.places import Place, described, point_of
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError
from sae.provenance import write_json
from sae.reading import read_object

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
_READ = ("activation", "k", "signed", "transcode", "skip_connection")
_OF_TRAINING = ("expansion_factor", "num_latents", "d_in", "normalize_decoder", "multi_topk",
                "dtype")  # fmt: skip
"""Settings without effect on what a trained SparseCoder computes, or told by its tensors, too."""


def load(path: Path) -> SAE:
    """Read a SparseCoder; its folder is named after its module, for example `layers.4`.

    Raises:
        ArtifactError: If it is damaged, groups latents, has settings or tensors that are not known
            here, or is a transcoder whose decoder rows have
            several lengths, by which its TopK does not select (`fold`).
    """
    config, file = read_object(path / CONFIG), path / WEIGHTS
    state = read_safetensors(file)
    word = config.get("activation", "topk")
    if word != "topk":
        raise ArtifactError(f"{path / CONFIG}: activation={word!r} cannot be read; topk can.")
    reject_flags(config, (*_READ, *_OF_TRAINING), path / CONFIG)
    encoder, b_enc, W_dec, b_dec = taken(state, _TENSORS, file)
    k = whole(config, "k", path / CONFIG)
    transcodes = bool(config.get("transcode"))
    skips = bool(config.get("skip_connection"))
    reject_others(state, (*_TENSORS, *(["W_skip"] if skips else [])), file)
    # files of mid-2024: no ReLU before the selection, which goes by size
    activation = "abs_topk" if config.get("signed") else "topk"
    weights = Weights(
        encoder.T, b_enc, W_dec, b_dec, "topk", activation, subtracts_b_dec=not transcodes, k=k,
        transcodes=transcodes, W_skip=taken(state, ("W_skip",), file)[0].T if skips else None,
    )  # fmt: skip
    hook = path.resolve().name
    point = point_of(hook)
    if not transcodes:
        return fold(weights, described("sparsify", Place(point=point), hook=hook), path)
    target = None if point is None else str(point)  # input and output of one module
    return fold(weights, described("sparsify", Place(), target=target, hook_out=hook), path)


def save(folder: Path, sae: SAE) -> None:
    """Write a SparseCoder; it has TopK only."""
    require(sae, ("topk",), "sparsify")
    tensors = tensors_of(sae, subtracts_b_dec=True)
    state = {
        "encoder.weight": tensors["W_enc"].T.contiguous(),
        "encoder.bias": tensors["b_enc"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    write_safetensors(state, folder / WEIGHTS)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": sae.config.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_in,
    }
    write_json(folder / CONFIG, config)


def _looks_like(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


FORMAT = Format("sparsify", _looks_like, load, save)
