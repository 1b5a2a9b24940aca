"""Convert tensors of other libraries to the inference SAE, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae.dictionaries.sae import SAE, WITH_K, SAEConfig
from sae.errors import ArtifactError, ConfigError

_EQUAL_NORMS = 1e-4
_EQUAL_NORMS_IN_16_BITS = 1e-2


@dataclass
class Weights:
    r"""An SAE as another library computes it.

    `pre = (x - b_dec if subtracts_b_dec else x) @ W_enc + b_enc`, `f = act(pre)`,
    `x_hat = f @ W_dec + b_dec (+ x @ W_skip)`, with decoder rows of any length.

    Attributes:
        W_enc: [d_in d_sae].
        b_enc: [d_sae].
        W_dec: [d_sae d_out]; d_out is d_in but for transcoders.
        b_dec: [d_out].
        architecture: Name of the architecture in that library; a label.
        activation: `relu`, `topk`, `abs_topk` or `jumprelu`.
        subtracts_b_dec: True if the encoder sees `x - b_dec`.
        k: Number of latents that fire, for `topk` and `abs_topk`.
        threshold: Threshold for `jumprelu`: one number, or one for each latent.
        by_norm: True if latents are compared by pre-activation times length of the decoder row:
            `topk` then selects by it, and the threshold is in its unit.
        transcodes: True if what is given is another place's activation than the input.
        W_skip: [d_in d_out], for those with a linear path.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    architecture: str
    activation: str = "relu"
    subtracts_b_dec: bool = False
    k: int | None = None
    threshold: Tensor | None = None
    by_norm: bool = False
    transcodes: bool = False
    W_skip: Tensor | None = None


@torch.no_grad()
def fold(weights: Weights, origin: Mapping[str, Any], where: object) -> SAE:
    r"""The inference SAE (float32) that computes the same `x_hat`, and the same f times row length.

    With decoder row lengths $n_j$: $W_{enc} \to W_{enc} n_j$, $b_{enc} \to (b_{enc} - b_{dec}
    W_{enc}) n_j$ where the library subtracts $b_{dec}$, $W_{dec} \to W_{dec} / n_j$, thresholds as
    $b_{enc}$ and at least 0, since no library lets a latent fire below 0. A row of length 0 gets
    an arbitrary direction and a latent that is silent.

    Args:
        weights: Tensors as the library stores them.
        origin: Facts about the SAE from its file (`described`).
        where: The file, for error messages.

    Raises:
        ArtifactError: If shapes do not fit, numbers are not finite, or the code would differ.
    """
    _check_shapes(weights, where)
    given = weights.W_dec.float()
    norms = given.norm(dim=1)
    if weights.activation in WITH_K and not weights.by_norm:
        _check_equal(norms, weights.W_dec.dtype, where)
    zero = norms == 0
    W_dec = given / norms.where(~zero, torch.ones(()))[:, None]
    W_dec[zero] = torch.eye(1, W_dec.shape[1])
    b_enc = weights.b_enc.double()
    if weights.subtracts_b_dec:
        b_enc = b_enc - weights.b_dec.double() @ weights.W_enc.double()
    threshold = weights.threshold
    if threshold is not None:
        threshold = threshold.double().clamp(min=0).expand(len(norms))
        threshold = (threshold if weights.by_norm else threshold * norms).float()
    (d_sae, d_out), d_in, skip = W_dec.shape, len(weights.W_enc), weights.W_skip
    try:
        return SAE(
            W_enc=(weights.W_enc.float() * norms).contiguous(),
            b_enc=(b_enc * norms).float(),
            W_dec=W_dec.contiguous(),
            b_dec=weights.b_dec.float().clone(),
            threshold=threshold,
            W_skip=None if skip is None else skip.float().contiguous(),
            config=SAEConfig(
                weights.architecture,
                weights.activation,
                d_in,
                d_sae,
                weights.k,
                d_out=d_out if weights.transcodes else None,
            ),
            metadata={"origin": dict(origin)},
        )
    except ConfigError as error:
        raise ArtifactError(f"{where} holds no valid SAE: {error}") from error


def gated(
    W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Encoder, bias and threshold of the JumpReLU that a gated encoder (arXiv 2404.16014) is.

    Gate $x W + b_g > 0$ and magnitude $ReLU(e^r x W + b_m)$ share W, so that the gate is open
    where $e^r x W + b_m > b_m - e^r b_g$.
    """
    factor = r_mag.double().exp()
    threshold = b_mag.double() - factor * b_gate.double()
    return (W_enc.double() * factor).float(), b_mag, threshold.clamp(min=0)


def require(sae: SAE, activations: tuple[str, ...], library: str, transcodes: bool = False) -> None:
    """Refuse to write an SAE that a library's format cannot hold.

    Raises:
        ArtifactError: If its activation is none of `activations`, it has further weights, or it is
            a transcoder and the format does not hold those (`transcodes`).
    """
    if sae.config.activation not in activations:
        raise ArtifactError(
            f"{library} has no activation={sae.config.activation}; its format holds "
            f"{', '.join(activations)}. Choose another format."
        )
    more = {name for name, _ in sae.named_parameters()}
    more -= {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", *(["W_skip"] if transcodes else [])}
    if more or (sae.config.d_out is not None and not transcodes):
        what = ", ".join(sorted(more)) or f"another output than its input (d_out={sae.d_out})"
        raise ArtifactError(
            f"This SAE has {what}, which is not written in the format of {library}. Choose "
            "format=native."
        )


def tensors_of(sae: SAE, *, subtracts_b_dec: bool) -> dict[str, Tensor]:
    """The SAE's tensors on the CPU, with b_enc for an encoder that sees `x - b_dec`, or x."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.named_parameters()}
    if subtracts_b_dec:
        shift = tensors["b_dec"].double() @ tensors["W_enc"].double()
        tensors["b_enc"] = (tensors["b_enc"].double() + shift).to(sae.dtype)
    return tensors


def _check_shapes(weights: Weights, where: object) -> None:
    W_enc, W_dec = weights.W_enc, weights.W_dec
    if W_dec.ndim != 2:
        raise ArtifactError(
            f"{where}: the decoder has shape {tuple(W_dec.shape)}, not [d_sae d_in]."
        )
    d_sae, d_out = W_dec.shape
    d_in = len(W_enc) if weights.transcodes and W_enc.ndim else d_out
    expected = {
        "encoder": (W_enc, (d_in, d_sae)),
        "encoder bias": (weights.b_enc, (d_sae,)),
        "decoder bias": (weights.b_dec, (d_out,)),
    }
    if weights.threshold is not None and weights.threshold.ndim > 0:
        expected["threshold"] = (weights.threshold, (d_sae,))
    if weights.W_skip is not None:
        expected["skip connection"] = (weights.W_skip, (d_in, d_out))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ArtifactError(
                f"{where}: the {name} has shape {tuple(tensor.shape)}; beside a decoder of shape "
                f"({d_sae}, {d_out}) it must have {shape}. Input and output may differ in width "
                "only in a transcoder, and this file does not say that it is one."
            )


def _check_equal(norms: Tensor, dtype: torch.dtype, where: object) -> None:
    """TopK compares pre-activations; times lengths that differ, others would be the largest."""
    rounding = _EQUAL_NORMS if dtype.itemsize > 2 else _EQUAL_NORMS_IN_16_BITS
    low, high = norms.aminmax()
    if high - low > rounding * high:
        raise ArtifactError(
            f"{where}: the decoder rows have lengths from {low:.4g} to {high:.4g}. TopK ignores "
            "them when it selects, so folding them into the encoder would change which latents "
            "fire. Only a TopK SAE with decoder rows of equal length can be read."
        )
