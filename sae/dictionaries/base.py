"""The base of all trainable dictionaries, and their registry.

A dictionary lives in the *scaled* space of the training batches (mean of ||x||^2 = d_in unless
`normalize=none`); `folded(scale)` turns it into the inference SAE that maps the LM's own
activations to the LM's own activations.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sae.dictionaries.codes import Code
from sae.dictionaries.sae import SAE, WITH_K, WITH_STEPS, SAEConfig
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import NOMINAL, Encoding, StepOutput, StepState
from sae.functional import input_and_target
from sae.registry import Registry
from sae.settings import Settings, setting

PENALTY = "sparsity"
"""Loss term that `StepState.penalty` multiplies."""


class Tensors(NamedTuple):
    """Weights of `f = act(x @ W_enc + b_enc)`, `x_hat = f @ W_dec + b_dec + x @ W_skip`, scaled."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    W_skip: Float[Tensor, "d_in d_out"] | None = None


class Dictionary(nn.Module, ABC):
    """Base of all trainable dictionaries.

    A new architecture declares a `Config` and a constructor `(config, shape, init)`, implements
    `encode_code`, `reconstruct`, `tensors` and `revive`, and registers itself under a name. What it
    trains by, it says in three hooks: `encoding`, where training needs another code than
    evaluation; `loss_rows`, its loss beside the reconstruction; `after_step`, what it edits after a
    step of the optimiser.

    Args:
        config: Settings of the architecture.
        shape: Sizes.
        init: Start values and kernels.
    """

    class Config(Settings):
        """Settings of every architecture; subclasses add theirs."""

        where = "sae."
        dict_ratio: float = setting(8.0, gt=0, help="latents per activation dimension")

    architecture: ClassVar[str]
    activation: ClassVar[str] = "relu"
    """Encoding of the saved SAE, a key of `sae.dictionaries.sae.ACTIVATIONS`."""
    per_latent: ClassVar[tuple[str, ...]]
    """Parameters that have one row (or entry) per latent."""
    encoder: ClassVar[str | None] = None
    """The parameter of them that holds an encoder apart from the decoder, a row for each latent."""
    coefficient: ClassVar[str | None] = None
    """Name of the setting that multiplies the sparsity penalty: what `target_l0` steers."""
    gradient_norm: ClassVar[float | None] = None
    """Norm that all gradients together are brought to in every step of a short run, where
    `trainer.gradient_clip` is null; None: left as they are.

    A penalised code starts dense, with gradients a hundred times those of the rest of the run;
    Adam's second moments remember them for a thousand steps, in which it hardly moves. One norm
    for all steps, whatever the width and the batch (docs/reference/architectures.md)."""
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Adam's decays of its moments where `optimizer.beta1` and `optimizer.beta2` are null."""
    biases: ClassVar[tuple[str, ...]] = ("b_enc",)
    """The encoder's biases: parameters that `optimizer.bias_rate` is for."""
    bias_rate: ClassVar[float] = 1.0
    """Their learning rate, as a multiple of the common one, where `optimizer.bias_rate` is null."""
    transcodes: ClassVar[bool] = False
    """True if it can give something else than what it reads (`Shape.d_out`)."""
    joins: ClassVar[bool] = False
    """True if it reads and writes several layers at once."""
    e2e_settings: ClassVar[Mapping[str, Any]] = {}
    """Defaults that differ where the LM's predictions train the dictionary."""
    frozen_decoder = False
    """True if the decoder stays as it was drawn."""

    def __init__(self, config: Settings, shape: Shape, init: Init) -> None:
        super().__init__()
        self.config: Any = config  # of the architecture's own class
        self.kernels = init.kernels
        self.d_in, self.d_sae, self.d_out = shape.d_in, shape.d_sae, shape.d_out

    @abstractmethod
    def encode_code(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Feature activations of a batch, dense or sparse as suits the architecture."""

    @abstractmethod
    def reconstruct(
        self, code: Code, x: Float[Tensor, "batch d_in"]
    ) -> Float[Tensor, "batch d_out"]:
        """Reconstruction from a code, and from `x` where there is a linear path beside it."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """Weights of the equivalent inference SAE, in the scaled space."""

    @abstractmethod
    def revive(
        self,
        latents: Int[Tensor, " n"],
        x: Float[Tensor, "n d_in"],
        direction: Float[Tensor, "n d_out"],
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

    def encoding(
        self,
        x: Float[Tensor, "batch d_in"],
        target: Float[Tensor, "batch d_out"],
        state: StepState | None = None,
    ) -> Encoding:
        """Code and reconstruction of a batch.

        Args:
            x: Scaled activations.
            target: Vectors to reconstruct.
            state: State of the training; None outside of it, where the code of a
                vector may not depend on the others of the batch.
        """
        code = self.encode_code(x)
        return Encoding(x, target, code, self.reconstruct(code, x))

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """Loss terms beside the reconstruction, by name, each multiplied by its coefficient.

        A term has one value for each vector, or several, [batch ...]: the loss is their mean over
        all, and dead latents are resampled by the sum of a vector's own means. A term without an
        axis is one for the whole batch, in which no vector has a share of its own: AuxK and the
        pull speak of dead latents, multi-k of a code that is not the vector's. `sparsity` is
        multiplied by `StepState.penalty`, which rises at the start and which `target_l0` steers.
        """
        return {}

    def before_step(self) -> None:
        """Edit gradients after the backward pass, before the optimiser's step."""

    def after_step(self) -> None:
        """Edit parameters right after the optimiser's step (for example back to unit rows)."""

    def thresholds(self) -> Float[Tensor, " d_sae"] | None:
        """Thresholds that pre-activations must exceed, for architectures that end as JumpReLU."""
        return None

    def split(
        self, batch: Float[Tensor, "*batch width"]
    ) -> tuple[Float[Tensor, "*batch d_in"], Float[Tensor, "*batch d_out"]]:
        """Input and target of a training batch, which are the same but for transcoders."""
        return input_and_target(batch, self.d_in)

    def training_output(
        self, batch: Float[Tensor, "batch width"], state: StepState = NOMINAL
    ) -> StepOutput:
        """Encode, decode and the loss terms.

        Args:
            batch: Scaled activations; for a transcoder those of input and target side by side.
            state: State of the training.
        """
        x, target = self.split(batch)
        found = self.encoding(x, target, state)
        found = found._replace(x_hat=found.x_hat.to(target.dtype))  # bf16 autocast: a float32 loss
        terms = {"reconstruction": mse_loss(found.x_hat, target)}
        for name, rows in self.loss_rows(found, state).items():
            terms[name] = state.penalty * rows.mean() if name == PENALTY else rows.mean()
        return StepOutput(found.x_hat, found.code, terms)

    @torch.no_grad()
    def row_losses(self, batch: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Loss of every vector by itself, at the full penalty: neuron resampling draws by it."""
        found = self.encoding(*self.split(batch))
        terms = self.loss_rows(found, NOMINAL).values()
        loss = (found.target - found.x_hat.to(batch.dtype)).square().mean(dim=1)
        for rows in (term for term in terms if term.ndim):
            loss = loss + rows.reshape(len(batch), -1).mean(dim=1)
        return loss

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Feature activations as a dense tensor."""
        return self.encode_code(x).dense()

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        """Reconstruction of `x`, or what a transcoder makes of it."""
        return self.reconstruct(self.encode_code(x), x)

    def latent_parameters(self) -> list[nn.Parameter]:
        """Every parameter that has one row (or entry) per latent."""
        return [self.get_parameter(name) for name in self.per_latent]

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
            metadata: Origin of the SAE.
        """
        *four, W_skip = self.tensors()
        W_enc, b_enc, W_dec, b_dec = (t.detach().float().cpu() for t in four)
        s, t = self._both(scale)
        W_dec = W_dec / t
        norms, threshold = W_dec.norm(dim=1), self.thresholds()
        config = SAEConfig(
            self.architecture, self.activation, self.d_in, self.d_sae, d_out=self.d_out,
            k=self.config.k if self.activation in WITH_K else None,
            steps=self.config.steps if self.activation in WITH_STEPS else None,
        )  # fmt: skip
        return SAE(
            W_enc=(s[:, None] * W_enc * norms).contiguous(),
            b_enc=b_enc * norms,
            W_dec=(W_dec / norms[:, None]).contiguous(),
            b_dec=b_dec / t,
            config=config,
            metadata=dict(metadata or {}),
            threshold=None if threshold is None else threshold.float().cpu() * norms,
            W_skip=None if W_skip is None else s[:, None] * W_skip.float().cpu() / t,
        )

    @torch.no_grad()
    def units(self, scale: float | Float[Tensor, " width"]) -> Float[Tensor, " d_sae"]:
        """Factors from its activations to those of the folded SAE: the $n_j$ of `folded`."""
        W_dec = self.tensors()[2].detach().float().cpu()
        return (W_dec / self._both(scale)[1]).norm(dim=1)

    def _both(
        self, scale: float | Float[Tensor, " width"]
    ) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_out"]]:
        """Factors of the columns of input and target."""
        if isinstance(scale, Tensor):
            return self.split(scale.float().cpu())
        return torch.full((self.d_in,), scale), torch.full((self.d_out or self.d_in,), scale)


ARCHITECTURES: Registry[type[Dictionary]] = Registry("sae.architecture", "architecture")
register = ARCHITECTURES.register
"""Make a dictionary class known as `sae.architecture=<name>`."""
