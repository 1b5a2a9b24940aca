"""The inference SAE: four tensors and an activation word, in the LM's own units."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae.errors import ConfigError

# Rounding of a unit row to the weights' dtype; far below anything that a metric can see.
_NORM_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_LOW_PRECISION_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class SAEConfig:
    """How a saved SAE encodes: words and sizes, no import paths.

    Args:
        architecture: Word of the architecture that it was trained as; only a label here.
        activation: Key of `ACTIVATIONS`.
        d_in: Width of the LM's activations.
        d_sae: Number of latents.
        k: Latents that may fire for each vector; `topk` needs it, the others do not take it.

    With activation `jumprelu` the SAE has a fifth tensor, `threshold`.
    """

    architecture: str
    activation: str
    d_in: int
    d_sae: int
    k: int | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation={self.activation!r} is not known. Choose one of {sorted(ACTIVATIONS)}."
            )
        if self.d_in < 1 or self.d_sae < 1:
            raise ConfigError(f"d_in={self.d_in} and d_sae={self.d_sae} must be at least 1.")
        if self.activation == "topk":
            if self.k is None or not 1 <= self.k <= self.d_sae:
                raise ConfigError(
                    f"k={self.k} must be between 1 and d_sae={self.d_sae} with activation=topk."
                )
        elif self.k is not None:
            raise ConfigError(f"k={self.k} has no effect with activation={self.activation}.")


class SAE(nn.Module):
    r"""Sparse autoencoder on LM activations: `f = act(x @ W_enc + b_enc)`, `x_hat = f @ W_dec + b_dec`.

    Takes and gives activations in the LM's own units; scale, centring and decoder norms are
    folded into the weights, so rows of `W_dec` have length 1 and f is in the LM's units. The
    weights do not ask for gradients; gradients flow to `x`.

    Args:
        W_enc: Encoder, a column for each latent.
        b_enc: Encoder bias.
        W_dec: Decoder, a unit row (dictionary atom) for each latent.
        b_dec: Decoder bias.
        threshold: What a pre-activation must exceed to fire, at least 0; for `jumprelu` only.
        config: How it encodes.
        metadata: Where it comes from: LM, text, point, context length. Plain JSON values.

    Raises:
        ConfigError: If shapes or dtypes differ from the config or from each other, a weight is
            not finite, or a row of `W_dec` is not of length 1.

    Example:
        >>> sae = SAE(
        ...     W_enc=torch.eye(2), b_enc=torch.zeros(2), W_dec=torch.eye(2), b_dec=torch.ones(2),
        ...     config=SAEConfig("l1", "relu", d_in=2, d_sae=2),
        ... )
        >>> sae.encode(torch.tensor([3.0, -1.0])), sae(torch.tensor([3.0, -1.0]))
        (tensor([3., 0.]), tensor([4., 1.]))
    """  # noqa: E501

    def __init__(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        config: SAEConfig,
        metadata: Mapping[str, object] | None = None,
        threshold: Tensor | None = None,
    ):
        super().__init__()
        weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        _check(weights | ({} if threshold is None else {"threshold": threshold}), config)
        self.W_enc = nn.Parameter(W_enc.detach(), requires_grad=False)
        self.b_enc = nn.Parameter(b_enc.detach(), requires_grad=False)
        self.W_dec = nn.Parameter(W_dec.detach(), requires_grad=False)
        self.b_dec = nn.Parameter(b_dec.detach(), requires_grad=False)
        self.threshold = (
            None if threshold is None else nn.Parameter(threshold.detach(), requires_grad=False)
        )
        self.config = config
        self.metadata = dict(metadata or {})
        self._activation = ACTIVATIONS[config.activation]

    @property
    def d_in(self) -> int:
        """Width of the LM's activations."""
        return self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.d_sae

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and of everything that is returned."""
        return self.W_enc.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, dense, in the LM's units."""
        pre = x.to(self.W_enc) @ self.W_enc + self.b_enc
        return self._activation(pre, self)

    def decode(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from feature activations."""
        return f.to(self.W_dec) @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of `x`."""
        return self.decode(self.encode(x))

    def extra_repr(self) -> str:
        """Shown by `print(sae)`."""
        k = f", k={self.config.k}" if self.config.k else ""
        return f"{self.config.architecture}, d_in={self.d_in}, d_sae={self.d_sae}{k}"


def _relu(pre: Tensor, sae: SAE) -> Tensor:
    del sae
    return pre.relu()


def _topk(pre: Tensor, sae: SAE) -> Tensor:
    """Keep the k largest pre-activations, then ReLU, so fewer than k may fire."""
    assert sae.config.k is not None
    values, indices = pre.topk(sae.config.k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.relu())


def _jumprelu(pre: Tensor, sae: SAE) -> Tensor:
    """Keep what exceeds the latent's threshold, unchanged."""
    assert sae.threshold is not None
    return pre * (pre > sae.threshold)


ACTIVATIONS: dict[str, Callable[[Tensor, SAE], Tensor]] = {
    "relu": _relu, "topk": _topk, "jumprelu": _jumprelu,
}  # fmt: skip
"""Activation functions by the word that a saved config names."""


def _check(weights: Mapping[str, Tensor], config: SAEConfig) -> None:
    d_in, d_sae = config.d_in, config.d_sae
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if (config.activation == "jumprelu") != ("threshold" in weights):
        raise ConfigError(
            f"activation={config.activation} and {'a' if 'threshold' in weights else 'no'} "
            "threshold do not fit: jumprelu, and only jumprelu, has one."
        )
    shapes |= {"threshold": (d_sae,)}
    for name, tensor in weights.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ConfigError(
                f"{name} has shape {tuple(tensor.shape)}; d_in={d_in} and d_sae={d_sae} ask for "
                f"{shapes[name]}."
            )
        if not tensor.is_floating_point():
            raise ConfigError(f"{name} is {tensor.dtype}; weights are floating-point numbers.")
        if not tensor.isfinite().all():
            raise ConfigError(f"{name} holds NaN or infinite numbers; nothing can be computed.")
    if "threshold" in weights and bool((weights["threshold"] < 0).any()):
        raise ConfigError("threshold holds negative numbers; latents never fire below 0.")
    if len(dtypes := {tensor.dtype for tensor in weights.values()}) > 1:
        raise ConfigError(f"The four tensors have several dtypes: {sorted(map(str, dtypes))}.")
    W_dec = weights["W_dec"]
    deviation = (W_dec.float().norm(dim=1) - 1).abs()
    if deviation.max() > _NORM_TOLERANCE.get(W_dec.dtype, _LOW_PRECISION_NORM_TOLERANCE):
        row = int(deviation.argmax())
        raise ConfigError(
            f"Row {row} of W_dec has length {W_dec[row].float().norm():.4g}; every row must have "
            "length 1. Divide W_dec by its row norms n, and multiply the columns of W_enc and the "
            "entries of b_enc by n (this changes nothing else with ReLU)."
        )
