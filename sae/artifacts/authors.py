"""The dictionaries of arXiv 2309.08600 (`learned_dicts.pt`): a pickled list of their objects.

The file names classes of the authors' code, which is neither needed nor run: PyTorch's restricted
unpickler fills stand-ins that hold attributes and do nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.artifacts.files import read_torch, taken, whole
from sae.artifacts.folding import Weights, fold
from sae.artifacts.format import Format
from sae.artifacts.places import Place, described
from sae.dictionaries.sae import SAE
from sae.errors import ArtifactError

FILE = "learned_dicts.pt"


class _LearnedDict:
    """Stand-in for a class of the authors: its attributes and its name, nothing else."""

    word: str


def _stand_in(name: str) -> type[_LearnedDict]:
    return type(name, (_LearnedDict,), {"word": name})


_STAND_INS: list[tuple[Any, str]] = [
    (_stand_in(name), f"{module}.{name}")
    for module, name in (
        ("autoencoders.learned_dict", "TiedSAE"),
        ("autoencoders.learned_dict", "UntiedSAE"),
        ("autoencoders.learned_dict", "ReverseSAE"),
        ("autoencoders.learned_dict", "Identity"),
        ("autoencoders.learned_dict", "IdentityReLU"),
        ("autoencoders.learned_dict", "RandomDict"),
        ("autoencoders.topk_encoder", "TopKLearnedDict"),
    )
]
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY: list[tuple[Any, str]] = [  # their grids of l1_alpha are NumPy's numbers
    (np.dtype, "numpy.dtype"),
    (type(np.dtype(np.float64)), "numpy.dtypes.Float64DType"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def load(path: Path, member: int | None = None) -> SAE:
    """Read one dictionary: TiedSAE, UntiedSAE or TopKLearnedDict.

    Args:
        path: The file, or the folder that it is in.
        member: Its position in the list, from 0; needed if there are several.

    Raises:
        ArtifactError: If it is damaged, names other classes, or holds another kind of dictionary.
    """
    file = path / FILE if path.is_dir() else path
    content = read_torch(file, [*_STAND_INS, *_NUMPY])
    pairs = content if isinstance(content, list) else []
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        raise ArtifactError(
            f"{file} is not a list of (dictionary, hyperparameters). Give a learned_dicts.pt that "
            "the code of arXiv 2309.08600 wrote."
        )
    if member is None and len(pairs) > 1 or member is not None and member >= len(pairs):
        listed = ", ".join(f"{i} ({_shown(told)})" for i, (_, told) in enumerate(pairs))
        raise ArtifactError(
            f"{file} holds {len(pairs)} dictionaries: {listed}. Choose one: {file}:0, for example."
        )
    chosen, told = pairs[member or 0]
    more = {name: told[name] for name in ("l1_alpha", "dict_size") if name in told}
    more = {name: value.item() if hasattr(value, "item") else value for name, value in more.items()}
    origin = described("authors", Place(), **more, member=member or 0)
    return fold(_weights(chosen, file), origin, file)


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and isinstance(pair[0], _LearnedDict)
        and isinstance(pair[1], dict)
    )


def _shown(told: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in told.items() if _is_number(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)  # NumPy's float64 is one


def _weights(chosen: _LearnedDict, file: Path) -> Weights:
    state, word = vars(chosen), chosen.word
    if word == "TopKLearnedDict":
        (rows,) = taken(state, ("dict",), file)
        zeros = torch.zeros(rows.shape[0]), torch.zeros(rows.shape[-1])
        k = whole(state, "sparsity", file)
        return Weights(rows.T, zeros[0], rows, zeros[1], word, "topk", k=k)
    if word == "UntiedSAE":
        encoder, decoder, b_enc = taken(state, ("encoder", "decoder", "encoder_bias"), file)
        rows, zero = _unit(decoder), torch.zeros(decoder.shape[-1])
        return Weights(encoder.T, b_enc, rows, zero, word)
    if word != "TiedSAE":
        raise ArtifactError(
            f"{file}: a {word} cannot be read. Choose a TiedSAE, UntiedSAE or TopKLearnedDict."
        )
    encoder, b_enc = taken(state, ("encoder", "encoder_bias"), file)
    rows = _unit(encoder)
    detectors = rows if state.get("norm_encoder", True) else encoder.float()
    return _centred(
        state, Weights(detectors.T, b_enc, rows, torch.zeros(rows.shape[1]), word), file
    )


def _centred(state: dict[str, Any], weights: Weights, file: Path) -> Weights:
    """Fold their affine centring `z = (R (x - t)) * s` and back `x = R^T (z / s) + t`."""
    d_in = weights.W_dec.shape[1]
    t, R, s = torch.zeros(d_in), torch.eye(d_in), torch.ones(d_in)
    known = {"center_trans": t, "center_rot": R, "center_scale": s}
    if any(state.get(name) is not None for name in known):  # older objects have none
        names = [name for name in known if state.get(name) is not None]
        known |= dict(zip(names, taken(state, names, file), strict=True))
        t, R, s = (known[name].double() for name in ("center_trans", "center_rot", "center_scale"))
        if (t.shape, R.shape, s.shape) != ((d_in,), (d_in, d_in), (d_in,)) or not bool(s.all()):
            raise ArtifactError(f"{file}: the centring does not fit activations of width {d_in}.")
    into = R.T * s.double()
    weights.W_enc = into @ weights.W_enc.double()
    weights.W_dec = (weights.W_dec.double() / s) @ R.double()
    weights.b_dec, weights.subtracts_b_dec = t, True
    return weights


def _unit(rows: Tensor) -> Tensor:
    """Rows by their length, as the authors do it (which leaves rows of length 0 alone)."""
    rows = rows.float()
    return rows / rows.norm(dim=-1).clamp(min=1e-8)[..., None]


def _looks_like(path: Path) -> bool:
    return (path / FILE).is_file() or (path.name == FILE and path.is_file())


FORMAT = Format("authors", _looks_like, load, many=True)
