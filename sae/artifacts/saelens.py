"""SAELens (`sae-lens`, formats of versions 3 to 6): `cfg.json` and `sae_weights.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sae.artifacts.files import (
    read_safetensors,
    reject_others,
    taken,
    warn_of_flags,
    whole,
    write_safetensors,
)
from sae.artifacts.folding import Weights, fold, gated, require, tensors_of
from sae.artifacts.format import Format
from sae.artifacts.places import Place, described, ends_of, hook_of, place_of, point_of
from sae.artifacts.saelens_settings import KNOWN
from sae.dictionaries.sae import SAE, WITH_K
from sae.errors import ArtifactError
from sae.provenance import write_json
from sae.reading import read_object

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
FORMAT_OF = "6.54.12"
"""Version whose files are written; without one in `metadata` the library expects older files."""
_WORDS = {"relu": "standard", "topk": "topk", "abs_topk": "abstopk", "jumprelu": "jumprelu"}
_BATCHTOPK = ("batchtopk", "matryoshka_batchtopk")
_TRANSCODERS = {"transcoder": "relu", "skip_transcoder": "relu",
                "jumprelu_transcoder": "jumprelu",
                "jumprelu_skip_transcoder": "jumprelu"}  # fmt: skip
"""Activations by the architecture; they never subtract b_dec, which is of the target's width."""


_EVERY = ("W_enc", "b_enc", "W_dec", "b_dec")
_FACTORS = ("scaling_factor", "finetuning_scaling_factor")
"""Factors of f in x_hat: of version 2, always applied, and of 3 to 5, where the config says so."""
_MORE = {
    "gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("threshold", "log_threshold"),
    **dict.fromkeys(_BATCHTOPK, ("topk_threshold",)),
    "skip_transcoder": ("W_skip",), "jumprelu_transcoder": ("threshold",),
    "jumprelu_skip_transcoder": ("threshold", "W_skip"),
}  # fmt: skip
"""Further tensors by architecture."""


def load(path: Path) -> SAE:
    """Read an inference SAE, or the SAE of a checkpoint.

    Settings that are not known (`saelens_settings`) and switched on are named in a warning.

    Raises:
        ArtifactError: If it is damaged, of another kind than standard, topk, abstopk, jumprelu,
            gated, batchtopk, transcoder or jumprelu_transcoder (both also with a skip connection),
            or normalises each input.
    """
    file = path / WEIGHTS
    config, tensors = read_object(path / CONFIG), read_safetensors(file)
    # before version 6 all of it stood at the top level
    about = {**config, **(config.get("metadata") or {})}
    weights = _weights(config, tensors, file)
    more = {f"activation_fn_kwargs.{name}": value
            for name, value in (config.get("activation_fn_kwargs") or {}).items()}  # fmt: skip
    warn_of_flags(config | more, KNOWN | {"activation_fn_kwargs.k"}, path / CONFIG)
    _apply_normalisation(weights, config, path)
    _apply_factors(weights, about, tensors, file)
    hook = about.get("hook_name") or about.get("hook_point")
    ctx = about.get("context_size")
    # one head's activations are a part of a site
    head = about.get("hook_head_index")
    point = None if head is not None else point_of(hook)
    place = Place.said(about.get("model_name"), point, ctx, about.get("dataset_path"))
    out = about.get("hook_name_out") if weights.transcodes else None
    target = str(point_of(out)) if point_of(out) else None
    return fold(
        weights,
        described("saelens", place, hook=hook, head=head, hook_out=out, target=target),
        path,
    )


def save(folder: Path, sae: SAE) -> None:
    """Write the two files of an inference SAE; BatchTopK is written as jumprelu, as SAELens does.

    A transcoder goes with relu and jumprelu, which are what the library has of them.
    """
    transcodes = sae.config.d_out is not None
    if transcodes:
        require(sae, ("relu", "jumprelu"), "saelens", transcodes=True)
    else:
        require(sae, tuple(_WORDS), "saelens")
    place = place_of(sae)
    tensors = tensors_of(sae, subtracts_b_dec=False)
    if sae.W_skip is not None:
        tensors["W_skip"] = tensors["W_skip"].T.contiguous()
    write_safetensors(tensors, folder / WEIGHTS)
    metadata = {
        "sae_lens_version": FORMAT_OF,
        "sae_lens_training_version": None,
        "model_name": place.lm,
        "hook_name": hook_of(place.point) if place.point else None,
        "hook_head_index": None,
        "context_size": place.ctx,
        "dataset_path": place.corpus,
        "prepend_bos": False,
        "trained_by": "lightning-sae",
        "training_architecture": sae.config.architecture,
    }
    config = {
        "architecture": _WORDS[sae.config.activation],
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": metadata,
    }
    if sae.config.k is not None:
        config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": False}
    if transcodes:
        skip = "" if sae.W_skip is None else "skip_"
        jump = "jumprelu_" if sae.config.activation == "jumprelu" else ""
        config |= {"architecture": f"{jump}{skip}transcoder", "d_out": sae.d_out}
        reads, writes = ends_of(sae)
        metadata |= {"hook_name": hook_of(reads) if reads else None,
                     "hook_name_out": hook_of(writes) if writes else None}  # fmt: skip
    write_json(folder / CONFIG, config)


def _looks_like(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def _weights(config: Mapping[str, Any], tensors: dict[str, Tensor], file: Path) -> Weights:
    word = config.get("architecture", "standard")
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    function = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    if word == "standard" and function == "topk":
        word = "topk"
    elif function != "relu" and (word, function) != ("topk", "topk"):
        raise ArtifactError(
            f"{file}: activation_fn={function!r} of a {word} SAE cannot be read. relu can, and "
            "topk of a standard SAE."
        )
    W_enc, W_dec, b_dec = taken(tensors, ("W_enc", "W_dec", "b_dec"), file)
    reject_others(tensors, (*_EVERY, *_FACTORS, *_MORE.get(word, ())), file)
    if word in _TRANSCODERS:
        return _transcoder(config, tensors, file)
    common = {
        "W_enc": W_enc, "W_dec": W_dec, "b_dec": b_dec, "architecture": word,
        "subtracts_b_dec": bool(config.get("apply_b_dec_to_input", True)),
        "by_norm": bool(config.get("rescale_acts_by_decoder_norm", False)),
    }  # fmt: skip
    if word == "gated":
        encoder = gated(W_enc, *taken(tensors, ("b_gate", "r_mag", "b_mag"), file))
        common |= zip(("W_enc", "b_enc", "threshold"), encoder, strict=True)
        return Weights(**common, activation="jumprelu")
    known = {"standard": (), "topk": (), "abstopk": (), "jumprelu": ("threshold",)}
    known |= dict.fromkeys(_BATCHTOPK, ("topk_threshold",))
    if word not in known:
        raise ArtifactError(
            f"{file}: architecture={word!r} cannot be read. Architectures that can: "
            f"{', '.join([*known, 'gated', *_TRANSCODERS])}."
        )
    if "log_threshold" in tensors:  # checkpoints of JumpReLU training, older ones
        tensors = {**tensors, "threshold": tensors["log_threshold"].exp()}
    b_enc, *threshold = taken(tensors, ("b_enc", *known[word]), file)
    activation = {theirs: own for own, theirs in _WORDS.items()}.get(word, "jumprelu")
    number = whole({"k": k}, "k", file.with_name(CONFIG)) if activation in WITH_K else None
    return Weights(
        **common,
        b_enc=b_enc,
        activation=activation,
        k=number,
        threshold=next(iter(threshold), None),
    )


def _transcoder(config: Mapping[str, Any], tensors: dict[str, Tensor], file: Path) -> Weights:
    word = config["architecture"]
    jumps, skips = _TRANSCODERS[word] == "jumprelu", "skip" in word
    if (config.get("normalize_activations") or "none") != "none":
        raise ArtifactError(
            f"{file.with_name(CONFIG)}: normalize_activations={config['normalize_activations']} of "
            "a transcoder cannot be read: it scales the input but not the output. Fold it into the "
            "weights with sae-lens first."
        )
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = taken(tensors, names, file)
    return Weights(
        W_enc, b_enc, W_dec, b_dec, architecture=word, activation=_TRANSCODERS[word],
        threshold=taken(tensors, ("threshold",), file)[0] if jumps else None,
        W_skip=taken(tensors, ("W_skip",), file)[0].T if skips else None, transcodes=True,
    )  # fmt: skip


def _apply_normalisation(weights: Weights, config: Mapping[str, Any], path: Path) -> None:
    """Fold the scale of `expected_average_only_in`; refuse what depends on each input."""
    word = config.get("normalize_activations") or "none"
    file = path / SCALER
    scaler = read_object(file) if file.is_file() else {}
    scales = scaler.get("scaling_factor") not in (None, 1)
    if scaler.get("has_whitening") or (scales and word == "none"):
        raise ArtifactError(
            f"{file} whitens the input, or scales it although {CONFIG} says normalize_activations "
            "none. Fold that into the weights with sae-lens, and save again."
        )
    if word == "none":
        return
    if word not in ("expected_average_only_in", True):
        raise ArtifactError(
            f"{path / CONFIG}: normalize_activations={word} changes every input before the encoder "
            "and cannot be folded into the weights here. Only none, and expected_average_only_in "
            "with its factor, can be read."
        )
    if not file.is_file():
        raise ArtifactError(
            f"{path / CONFIG}: normalize_activations={word}, and {SCALER}, which holds the factor, "
            "is not beside it. Copy it from the checkpoint, or fold the factor there "
            "(fold_activation_norm_scaling_factor) and save again."
        )
    factor = scaler.get("scaling_factor")
    if not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise ArtifactError(f"{file}: scaling_factor={factor!r} must be a number above 0.")
    # x' = factor * x goes in, and what comes out is divided by it
    weights.W_enc = weights.W_enc * factor
    if weights.threshold is not None and weights.by_norm:
        weights.threshold = weights.threshold / factor
    weights.W_dec, weights.b_dec = weights.W_dec / factor, weights.b_dec / factor


def _apply_factors(
    weights: Weights, about: Mapping[str, Any], tensors: Mapping[str, Tensor], file: Path
) -> None:
    """Fold what a decoder multiplies f with; f and the selection of latents stay as they are."""
    said = about.get("finetuning_scaling_factor")
    names = [name for name in _FACTORS if name in tensors]
    factors = {name: tensors[name] for name in names if not bool((tensors[name] == 1).all())}
    if said and not names:
        taken(tensors, _FACTORS[1:], file)  # says that it is missing
    for name, factor in factors.items():
        if said is False or (name == "finetuning_scaling_factor" and not said):
            raise ArtifactError(
                f"{file} holds {name} with entries other than 1, but {CONFIG} does not say "
                "finetuning_scaling_factor: true. Write true there if the factor applies; if not, "
                "write false and remove the tensor or set it to 1."
            )
        if weights.by_norm or factor.shape != weights.b_enc.shape:
            raise ArtifactError(
                f"{file}: {name} {list(factor.shape)} cannot be folded into decoder rows by whose "
                "length latents are selected, or does not have one number per latent. Fold it into "
                "the weights with sae-lens first."
            )
        weights.W_dec = weights.W_dec * factor[:, None].to(weights.W_dec)


FORMAT = Format("saelens", _looks_like, load, save)
