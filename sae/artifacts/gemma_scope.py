"""Gemma Scope (arXiv 2408.05147): `params.npz` with the arrays of a JumpReLU SAE."""

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae.artifacts.files import existing, reject_others, taken
from sae.artifacts.folding import Weights, fold
from sae.artifacts.format import Format
from sae.artifacts.places import Place, described
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError
from sae.types import Point

FILE = "params.npz"
_ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_SITES = {"res": "resid", "mlp": "mlp_out", "att": "attn_z"}
"""By the end of a repository's name: MLP outputs after their norm, heads before they are mixed."""


def load(path: Path) -> SAE:
    """Read one SAE: `f = pre * (pre > threshold)` with `pre = x @ W_enc + b_enc`.

    Where it belongs is read off its place, as the repositories name it:
    `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.

    Args:
        path: The file, or the folder that it is in.

    Raises:
        ArtifactError: If it is damaged, or lacks an array.
    """
    file = path / FILE if path.is_dir() else path
    state = _read(file)
    reject_others(state, _ARRAYS, file)
    W_enc, b_enc, W_dec, b_dec, threshold = taken(state, _ARRAYS, file)
    place = str(file.resolve())
    weights = Weights(
        W_enc, b_enc, W_dec, b_dec, "jumprelu", "jumprelu", threshold=threshold,
        transcodes="transcoder" in place,
    )  # fmt: skip
    return fold(weights, described("gemma_scope", _place(place)), file)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with existing(file).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except ArtifactError:
        raise
    except Exception as error:  # of zip, NumPy's headers and types, whatever bytes come
        raise ArtifactError(
            f"{file} cannot be read as NumPy arrays ({error}). Copy it again; objects in it are "
            "not unpickled."
        ) from error


def _place(text: str) -> Place:
    of = re.search(r"gemma-scope-(\d+b)-(pt|it)-(\w+)", text)
    layer = re.search(r"\blayer_(\d+)\b", text)
    site = _SITES.get(of[3]) if of else None
    tuned = "-it" if of and of[2] == "it" else ""
    return Place.said(
        f"google/gemma-2-{of[1]}{tuned}" if of else None,
        Point(site, int(layer[1])) if site and layer else None,  # pyright: ignore[reportArgumentType]
    )


def _looks_like(path: Path) -> bool:
    return (path / FILE).is_file() or (path.name == FILE and path.is_file())


FORMAT = Format("gemma_scope", _looks_like, load)
