"""What every trainable dictionary shares: the class to derive from, and the table of words.

A dictionary lives in the *scaled* space of the training batches (mean of ||x||^2 = d_in unless
`normalize=none`); `folded(scale)` turns it into the inference SAE that maps the LM's own
activations to the LM's own activations.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, mse_loss

from sae.dictionaries.codes import Code, DenseCode, SparseCode
from sae.dictionaries.sae import SAE, SAEConfig
from sae.dictionaries.shape import Shape
from sae.functional import input_and_target
from sae.kernels import Pattern, int8, latent_values, select_above_up_to, select_positive_up_to
from sae.registry import Registry
from sae.settings import Settings, setting

SPARSE_BELOW = 0.08
"""Share of positive pre-activations in a batch up to which the sparse kernels beat dense products.

Measured with benchmarks/scaling.py (docs/speed.md); it depends little on the sizes."""


class StepOutput(NamedTuple):
    """What a training step needs of an architecture.

    `terms` are the named parts of the loss, each already multiplied by its coefficient; their sum
    is the loss, and each is logged as `train/loss_<name>`.
    """

    x_hat: Float[Tensor, "batch d_out"]
    code: Code
    terms: dict[str, Float[Tensor, ""]]


class Moment(NamedTuple):
    """When in the training a step happens, as far as losses depend on it.

    Attributes:
        penalty: Factor of all sparsity penalties: the warm-up, times what `target_l0` steers.
        progress: Share of the run that is done, from 0 to 1.
        dead: Latents that count as dead; None where nobody counts.
    """

    penalty: float | Tensor = 1.0
    progress: float = 0.0
    dead: Bool[Tensor, " d_sae"] | None = None


NOMINAL = Moment()
"""Full penalties, the start of the run, nothing known to be dead."""


class LatentParameter(NamedTuple):
    """A parameter and the axis along which it is indexed by latents (for Adam resets)."""

    parameter: Tensor
    axis: int


class Dictionary(nn.Module, ABC):
    """Base of all trainable dictionaries.

    A new architecture declares a `Config` and a constructor `(config, shape, init)`, implements
    `encode_code`, `decode_code`, `tensors`, `latent_parameters` and `revive`, overrides
    `row_penalties` where it has any, and registers itself under a name.

    Args:
        config: Settings of the architecture.
        shape: Sizes.
    """

    class Config(Settings):
        """Settings of every architecture; subclasses add theirs."""

        where = "sae."
        dict_ratio: float = setting(8.0, gt=0, help="latents per activation dimension")

    architecture: ClassVar[str]
    coefficient: ClassVar[str | None] = None
    """Name of the setting that multiplies the sparsity penalty: what `target_l0` steers."""
    gradient_norm: ClassVar[float | None] = None
    """Norm that all gradients together are brought to in every step of a short run, where
    `trainer.gradient_clip` is null; None: left as they are.

    A penalised code starts dense, with gradients a hundred times those of the rest of the run;
    Adam's second moments remember them for a thousand steps, in which it hardly moves. One norm
    for all steps, whatever the width and the batch (docs/architectures.md has what it gave)."""
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Adam's decays of its moments where `optimizer.beta1` and `optimizer.beta2` are null."""
    biases: ClassVar[tuple[str, ...]] = ("b_enc",)
    """The encoder's biases: parameters that `optimizer.bias_rate` is for."""
    bias_rate: ClassVar[float] = 1.0
    """Their learning rate, as a multiple of the common one, where `optimizer.bias_rate` is null."""
    transcodes: ClassVar[bool] = False
    """Whether it can give something else than what it reads (`Untied.transcode`)."""
    joins: ClassVar[bool] = False
    """Whether it reads and writes several layers at once."""
    untied: ClassVar[bool] = False
    """Whether encoder and decoder are parameters of their own."""
    e2e_settings: ClassVar[Mapping[str, Any]] = {}
    """Defaults that differ where the LM's predictions train the dictionary."""
    frozen_decoder = False
    """Whether the decoder stays as it was drawn."""

    def __init__(self, config: Settings, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.d_in, self.d_sae, self.d_out = shape.d_in, shape.d_sae, shape.d_out
        self.kernels = "auto"  # or int8, dense, sparse: what `trainer.kernels` says

    @abstractmethod
    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Feature activations of a batch, dense or sparse as suits the architecture."""

    @abstractmethod
    def decode_code(self, code: Code) -> Float[Tensor, "batch d_in"]:
        """Reconstruction from a code."""

    @abstractmethod
    def tensors(self) -> "Tensors":
        """Weights of the equivalent `f = act(x @ W_enc + b_enc)`, `x_hat = f @ W_dec + b_dec`."""

    @abstractmethod
    def latent_parameters(self) -> list[LatentParameter]:
        """Every parameter that has one row (or entry) per latent, with that axis."""

    @abstractmethod
    def revive(
        self,
        latents: Int[Tensor, " n"],
        x: Float[Tensor, "n d_in"],
        direction: Float[Tensor, "n d_in"],
        alive: Bool[Tensor, " d_sae"],
    ) -> None:
        """Start the dead `latents` again, by the rules of the architecture.

        Args:
            latents: Indices of the latents to revive.
            x: One input per latent, drawn by the resampler, in the scaled space.
            direction: Unit vectors that they are pointed at: those of the inputs or of their
                residuals.
            alive: The latents that are not dead.
        """

    def split(
        self, batch: Float[Tensor, "*batch width"]
    ) -> tuple[Float[Tensor, "*batch d_in"], Float[Tensor, "*batch d_out"]]:
        """Input and target of a training batch, which are the same but for transcoders."""
        return input_and_target(batch, self.d_in)

    def reconstruct(
        self, code: Code, x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """Reconstruction from a code, and from `x` where there is a linear path beside it."""
        del x
        return self.decode_code(code)

    def skip(self) -> Float[Tensor, "d_in d_out"] | None:
        """Weights of the linear path from input to output, where there is one."""
        return None

    def parameter_groups(self, lr: float, bias_rate: float | None = None) -> list[dict[str, Any]]:
        """What the optimiser is given: parameters that move at the same rate, with that rate.

        Biases that are fast by default are a group of their own at every rate: a short run that is
        continued as a long one finds its state again.

        Args:
            lr: The common learning rate.
            bias_rate: Multiple of it for the encoder's biases; None: what suits the architecture.
        """
        fast = self.bias_rate if bias_rate is None else bias_rate
        apart = self.biases if fast != 1 or self.bias_rate != 1 else ()
        common = [p for name, p in self.named_parameters() if name not in apart]
        biases = [p for name, p in self.named_parameters() if name in apart]
        groups = [{"params": common, "lr": lr}, {"params": biases, "lr": lr * fast}]
        return groups if biases else groups[:1]

    def _encode_decode(self, x: Tensor) -> tuple[Code, Tensor]:
        """Both directions."""
        code = self.encode_code(x)
        return code, self.reconstruct(code, x)

    def _sparse_enough(
        self, pre: Float[Tensor, "batch d_sae"], thresholds: Float[Tensor, " d_sae"] | None = None
    ) -> Pattern | None:
        """The positive pre-activations, if they are so few that the sparse kernels are faster.

        With `thresholds` those that exceed them.

        The dense product that selects is the start of a dense code as well, so that measuring the
        density of each batch costs one count.
        """
        # on a GPU the count would have to be waited for, and dense products are hard to beat
        forced = self.kernels == "sparse"
        if self.kernels == "dense" or (not forced and pre.device.type != "cpu"):
            return None
        share = 1.0 if forced else SPARSE_BELOW
        most = int(share * pre.numel())
        if thresholds is None:
            return select_positive_up_to(pre, most)
        return select_above_up_to(pre, thresholds, most)

    def _few_or_dense(self, x: Tensor, W: Tensor, bias: Tensor) -> Pattern | Tensor:
        """Where `x @ W.T + bias` is (nearly) positive, if few are; else these pre-activations."""
        if self._by_int8(x):
            pattern = self._sparse_enough(int8.upper_bounds(x, W, bias).pre)
            if pattern is not None:
                return pattern
        pre = linear(x, W, bias)
        pattern = self._sparse_enough(pre)
        return pre if pattern is None else pattern

    def _by_int8(self, x: Tensor) -> bool:
        there = x.device.type == "cpu" and x.dtype == torch.float32 and int8.available()
        return there and self.kernels == "int8"

    def _relu_code(self, x: Tensor, W: Tensor, bias: Tensor) -> Code:
        """`relu(x @ W.T + bias)`, dense or sparse."""
        found = self._few_or_dense(x, W, bias)
        if isinstance(found, Tensor):
            return DenseCode(torch.relu(found))
        return SparseCode(found, torch.relu(latent_values(x, W, bias, found)))

    def selected_code(
        self,
        x: Tensor,
        W: Tensor,
        bias: Tensor,
        select: Callable[[Tensor], Pattern],
        candidates: Callable[[Tensor], Pattern] | None = None,
    ) -> Code:
        """ReLU code of the latents that `select` picks from the pre-activations.

        With `candidates`, which picks some more, an int8 product may come first: `select` then
        picks among the candidates by their values in float32.
        """
        if self.kernels == "dense":
            pre = linear(x, W, bias)
            pattern = select(pre)
            values = torch.relu(pre[pattern.rows, pattern.latents])
            return DenseCode(SparseCode(pattern, values).dense())
        known = None
        with torch.no_grad():
            if candidates is not None and self._by_int8(x):
                bounds = int8.upper_bounds(x, W, bias)
                some = candidates(bounds.pre.mul_(bounds.units))
                values = latent_values(x, W, bias, some)
                kept = int8.select_among(some, values, select)
                pattern, known = some.only(kept), values[kept]
            else:
                pattern = select(linear(x, W, bias))
        return SparseCode(pattern, torch.relu(latent_values(x, W, bias, pattern, known)))

    def row_penalties(self, code: Code) -> dict[str, Float[Tensor, " batch"]]:
        """Loss terms beside the reconstruction, one value per vector, with their coefficients."""
        del code
        return {}

    def training_output(
        self, batch: Float[Tensor, "batch width"], moment: Moment = NOMINAL
    ) -> StepOutput:
        """Encode, decode and the loss terms.

        Args:
            batch: Scaled activations; for a transcoder those of input and target side by side.
            moment: When in the training it happens.
        """
        x, target = self.split(batch)
        return self._output(x, target, *self._encode_decode(x), moment)

    def _output(
        self, x: Tensor, target: Tensor, code: Code, x_hat: Tensor, moment: Moment
    ) -> StepOutput:
        del x
        return self._with_penalties(target, code, x_hat, moment, self.row_penalties(code))

    @staticmethod
    def _with_penalties(
        target: Tensor, code: Code, x_hat: Tensor, moment: Moment, penalties: Mapping[str, Tensor]
    ) -> StepOutput:
        """Reconstruction, and the means of `penalties` (one value per vector) at this moment."""
        x_hat = x_hat.to(target.dtype)  # bf16 autocast: the loss is float32
        terms = {"reconstruction": mse_loss(x_hat, target)}
        for name, rows in penalties.items():
            terms[name] = moment.penalty * rows.mean()
        return StepOutput(x_hat, code, terms)

    @torch.no_grad()
    def row_losses(self, batch: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Loss of every vector by itself: what neuron resampling draws its inputs by.

        All terms, with full penalties, but for those that speak of other codes than the vector's
        own: AuxK, multi-k and the pull on dead latents.
        """
        x, target = self.split(batch)
        code = self.encode_code(x)
        loss = (target - self.reconstruct(code, x).to(x.dtype)).square().mean(dim=1)
        loss = loss + self.more_errors(x, target, code)
        return loss + sum(self.row_penalties(code).values(), torch.zeros_like(loss))

    def more_errors(
        self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"], code: Code
    ) -> Float[Tensor, " batch"]:
        """Errors of further reconstructions from parts of a code, one value per vector."""
        del target, code
        return x.new_zeros(len(x))

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations as a dense tensor."""
        return self.encode_code(x).dense()

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Reconstruction of `x`, or what a transcoder makes of it."""
        return self.reconstruct(self.encode_code(x), x)

    def constrain_gradients(self) -> None:
        """Edit gradients after the backward pass, before the optimiser step."""

    def constrain_parameters(self) -> None:
        """Edit parameters right after the optimiser step (for example back to unit rows)."""

    def thresholds(self) -> Float[Tensor, " d_sae"] | None:
        """What a pre-activation must exceed to fire, for architectures that end as JumpReLU."""
        return None

    def inference_config(self) -> SAEConfig:
        """How the saved SAE encodes."""
        return SAEConfig(
            architecture=self.architecture, activation="relu", d_in=self.d_in, d_sae=self.d_sae,
            d_out=self.d_out,
        )  # fmt: skip

    @torch.no_grad()
    def folded(
        self,
        scale: float | Float[Tensor, " width"],
        metadata: Mapping[str, object] | None = None,
    ) -> SAE:
        r"""The inference SAE in the LM's own units, with no hidden state.

        With scaled inputs $x' = s x$, scaled targets $y' = t y$ (t = s where the target is the
        input) and the norms $n_j$ of the decoder in the LM's units, $W_{dec} / t$:
        $W_{enc} \to s W_{enc} n_j$, $b_{enc} \to b_{enc} n_j$, $W_{dec} \to W_{dec} / (t n_j)$,
        $b_{dec} \to b_{dec} / t$, $W_{skip} \to s W_{skip} / t$, thresholds as $b_{enc}$. ReLU and
        TopK commute with positive factors that are equal for all latents, so the code is the same
        up to the unit of f.

        Args:
            scale: Factor between the LM's units and training batches; a vector where it is not
                the same for every column of a batch.
            metadata: Where the SAE comes from.
        """
        W_enc, b_enc, W_dec, b_dec = (t.detach().float().cpu() for t in self.tensors())
        if isinstance(scale, Tensor):
            s, t = self.split(scale.float().cpu())
        else:
            s, t = torch.full((len(W_enc),), scale), torch.full((len(b_dec),), scale)
        W_dec = W_dec / t
        norms, threshold, W_skip = W_dec.norm(dim=1), self.thresholds(), self.skip()
        return SAE(
            W_enc=(s[:, None] * W_enc * norms).contiguous(),
            b_enc=b_enc * norms,
            W_dec=(W_dec / norms[:, None]).contiguous(),
            b_dec=b_dec / t,
            config=self.inference_config(),
            metadata=dict(metadata or {}),
            threshold=None if threshold is None else threshold.float().cpu() * norms,
            W_skip=None if W_skip is None else s[:, None] * W_skip.float().cpu() / t,
        )


class Tensors(NamedTuple):
    """The four tensors of a dictionary, in the scaled space."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]


ARCHITECTURES: Registry[type[Dictionary]] = Registry("sae.architecture", "architecture")
register = ARCHITECTURES.register
"""Make a dictionary class known as `sae.architecture=<name>`."""
