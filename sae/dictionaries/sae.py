"""The inference SAE: four tensors and an activation function, in the LM's own units."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu6

from sae.errors import ConfigError

# Rounding of a unit row to the weights' dtype; far below anything that a metric can see.
_NORM_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
_LOW_PRECISION_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class SAEConfig:
    """Description of a saved SAE: names and sizes, no import paths.

    Args:
        architecture: Name of the architecture that it was trained as; only a label here.
        activation: Key of `ACTIVATIONS`.
        d_in: Width of the LM's activations.
        d_sae: Number of latents.
        k: Latents that may fire for each vector; `topk` and `abs_topk` need it, the others do not
            take it.
        steps: Refinements of the code; `lista` needs it, the others do not take it.
        d_out: Width of what is reconstructed, where that is not the input (transcoders).

    With activations `jumprelu` and `smooth_jumprelu` the SAE has a fifth tensor, `threshold`.
    """

    architecture: str
    activation: str
    d_in: int
    d_sae: int
    k: int | None = None
    steps: int | None = None
    d_out: int | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(
                f"activation={self.activation!r} is not known. Choose one of {sorted(ACTIVATIONS)}."
            )
        if self.d_in < 1 or self.d_sae < 1:
            raise ConfigError(f"d_in={self.d_in} and d_sae={self.d_sae} must be at least 1.")
        if self.d_out is not None and self.d_out < 1:
            raise ConfigError(f"d_out={self.d_out} must be at least 1.")
        for name, most, words in (("k", self.d_sae, WITH_K), ("steps", 100, WITH_STEPS)):
            value = getattr(self, name)
            if self.activation in words and (value is None or not 1 <= value <= most):
                limit = f"d_sae={most}" if name == "k" else most
                raise ConfigError(
                    f"{name}={value} must be between 1 and {limit} with "
                    f"activation={self.activation}."
                )
            if self.activation not in words and value is not None:
                raise ConfigError(
                    f"{name}={value} has no effect with activation={self.activation}."
                )


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
        threshold: Value that a pre-activation must exceed to fire, at least 0; for `jumprelu` and
            `smooth_jumprelu` only.
        W_skip: Linear path from input to output, [d_in d_out]; None for none.
        config: Sizes and activation function.
        metadata: Origin of the SAE: LM, text, point, context length. Plain JSON values.

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
        W_skip: Tensor | None = None,
    ):
        super().__init__()
        weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        more = {"threshold": threshold, "W_skip": W_skip}
        _check(weights | {name: t for name, t in more.items() if t is not None}, config)
        self.W_enc = nn.Parameter(W_enc.detach(), requires_grad=False)
        self.b_enc = nn.Parameter(b_enc.detach(), requires_grad=False)
        self.W_dec = nn.Parameter(W_dec.detach(), requires_grad=False)
        self.b_dec = nn.Parameter(b_dec.detach(), requires_grad=False)
        self.threshold, self.W_skip = (
            None if tensor is None else nn.Parameter(tensor.detach(), requires_grad=False)
            for tensor in (threshold, W_skip)
        )
        self.config = config
        self.metadata = dict(metadata or {})
        self._activation = ACTIVATIONS[config.activation]

    @property
    def d_in(self) -> int:
        """Width of the LM's activations."""
        return self.config.d_in

    @property
    def d_out(self) -> int:
        """Width of what is reconstructed; that of the input but for transcoders."""
        return self.config.d_out or self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.d_sae

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and of everything that is returned."""
        return self.W_enc.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, dense, in the LM's units."""
        pre = x.to(self.W_enc) @ self.W_enc + self.b_enc
        return self._activation(pre, self)

    def decode(self, f: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction from feature activations; a skip connection is not part of it."""
        return f.to(self.W_dec) @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction of `x`, or of what the SAE was trained to make of it."""
        return self.reconstruct(self.encode(x), x)

    def reconstruct(
        self, f: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """`decode`, and what a skip connection adds."""
        x_hat = self.decode(f)
        return x_hat if self.W_skip is None else x_hat + x.to(self.W_skip) @ self.W_skip

    def extra_repr(self) -> str:
        """Shown by `print(sae)`."""
        k = f", k={self.config.k}" if self.config.k else ""
        return f"{self.config.architecture}, d_in={self.d_in}, d_sae={self.d_sae}{k}"


def _relu(pre: Tensor, sae: SAE) -> Tensor:
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


def _smooth_jumprelu(pre: Tensor, sae: SAE) -> Tensor:
    """The authors' thresholding function: 0 up to 0.9 of the threshold, the input from it on.

    Source: HoagyC/sparse_coding, `FunctionalThresholdingSAE`.
    """
    assert sae.threshold is not None
    return smooth_jump(pre, sae.threshold)


def smooth_jump(pre: Tensor, threshold: Tensor) -> Tensor:
    r"""$t\,(\mathrm{relu6}(60(s - 0.9))/6 + \mathrm{relu}(s - 1))$ with $s = pre / t$."""
    s = pre / threshold.clamp_min(1e-8)
    return threshold * (relu6(60 * (s - 0.9)) / 6 + (s - 1).relu())


def _abs_topk(pre: Tensor, sae: SAE) -> Tensor:
    """Keep the k pre-activations of largest size, with their signs."""
    assert sae.config.k is not None
    indices = pre.abs().topk(sae.config.k, dim=-1).indices
    return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))


def _identity(pre: Tensor, sae: SAE) -> Tensor:
    """All pre-activations, signed: rotations and other baselines that are not sparse."""
    return pre


def _lista(pre: Tensor, sae: SAE) -> Tensor:
    """A ReLU code, refined: `steps` times f := relu(pre + f - (f @ W_dec) @ W_enc)."""
    assert sae.config.steps is not None
    f = pre.relu()
    for _ in range(sae.config.steps):
        f = (pre + f - (f @ sae.W_dec) @ sae.W_enc).relu()
    return f


def _nearest(pre: Tensor, sae: SAE) -> Tensor:
    """One latent: the largest pre-activation, which fires with the length of its encoder column.

    k-means: with centroids c (less b_dec) as columns and -||c||^2 / 2 - <c, b_dec> as biases, the
    nearest one wins.
    """
    nearest = pre.argmax(dim=-1, keepdim=True)
    return torch.zeros_like(pre).scatter(-1, nearest, sae.W_enc.norm(dim=0)[nearest])


ACTIVATIONS: dict[str, Callable[[Tensor, SAE], Tensor]] = {
    "relu": _relu, "topk": _topk, "jumprelu": _jumprelu, "smooth_jumprelu": _smooth_jumprelu,
    "abs_topk": _abs_topk, "identity": _identity, "lista": _lista, "nearest": _nearest,
}  # fmt: skip
"""Activation functions by their names in a saved config."""
SIGNED = ("abs_topk", "identity")
"""Activations whose codes have both signs, so that the sign of an atom means nothing."""
WITH_K = ("topk", "abs_topk")
WITH_STEPS = ("lista",)
WITH_THRESHOLD = ("jumprelu", "smooth_jumprelu")


def _check(weights: Mapping[str, Tensor], config: SAEConfig) -> None:
    d_in, d_sae, d_out = config.d_in, config.d_sae, config.d_out or config.d_in
    if (config.activation in WITH_THRESHOLD) != ("threshold" in weights):
        raise ConfigError(
            f"activation={config.activation} was given with "
            f"{'a' if 'threshold' in weights else 'no'} threshold. A threshold belongs to "
            f"{' and '.join(WITH_THRESHOLD)}, which need one, and to no other activation."
        )
    shapes = {
        "W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,),
        "threshold": (d_sae,), "W_skip": (d_in, d_out),
    }  # fmt: skip
    for name, tensor in weights.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ConfigError(
                f"{name} has shape {tuple(tensor.shape)}; with d_in={d_in} and d_sae={d_sae} it "
                f"must have {shapes[name]}."
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
