"""The LightningModule: one optimiser step of a dictionary, and what must happen around it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import Dictionary, Moment, StepOutput
from sae.dictionaries.codes import Code
from sae.dictionaries.untied import Untied
from sae.errors import NonFiniteLossError
from sae.functional import reconstruction_metrics, reconstruction_terms
from sae.training.optimizers import OptimizerSettings
from sae.training.ranks import copy_from_first_rank, mean_over_ranks, sum_over_ranks
from sae.training.resampling import ResampleSettings, dead_latents, resample
from sae.training.schedules import linear_decay, span_tokens, warmup
from sae.training.target_l0 import TargetL0


class Evaluated(TypedDict):
    """What a validation or test step hands to the callbacks, in the LM's own units."""

    x: Float[Tensor, "batch d_out"]
    """What should be reconstructed: the input, or a transcoder's target."""
    x_hat: Float[Tensor, "batch d_out"]
    code: Code


@dataclass(frozen=True)
class RunLength:
    """Length of a run: the schedules are shares of it.

    Attributes:
        steps: Optimiser steps.
        batch_size: Vectors per step, over all ranks; a vector is an LM token.
    """

    steps: int
    batch_size: int

    @property
    def tokens(self) -> int:
        """Vectors seen in the whole run."""
        return self.steps * self.batch_size


class SAEModule(L.LightningModule):
    """Trains a `Dictionary` on scaled activation batches.

    All edits beside the gradient (decoder constraint, firing counters, resampling) happen inside
    `optimizer_step`: Lightning runs callback hooks before the module's own, so a checkpoint that a
    callback writes in `on_train_batch_end` would miss edits that the module makes there.

    Args:
        dictionary: What is trained.
        length: Steps and batch size, for schedules in tokens.
        optimizer: Optimiser and learning-rate schedule.
        resampling: Dead window and resampling times.
        sparsity_warmup_tokens: Linear warm-up of all penalties; tokens or a share ("5%").
        target_l0: L0 that the penalty's coefficient is steered to; None: it stays as given.
        gradient_norm: Norm that all gradients together are brought to in every step; None: they
            are clipped at the trainer's `gradient_clip_val`, or left as they are.
        scale: Factor that the batches were multiplied with, or one for each column; metrics
            divide by it.
        seed: Seed of the resampler's draws.
        resample_inputs: `(n, seed) -> [n d_in]` random scaled training vectors; default: the
            trainer's datamodule.
    """

    tokens_since_fired: Tensor
    revived: Tensor

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        length: RunLength,
        optimizer: OptimizerSettings | None = None,
        resampling: ResampleSettings | None = None,
        sparsity_warmup_tokens: int | float | str = "5%",
        target_l0: float | None = None,
        gradient_norm: float | None = None,
        scale: float | Tensor = 1.0,
        seed: int = 0,
        resample_inputs: Callable[[int, int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.length, self.seed, self.gradient_norm = length, seed, gradient_norm
        self.scale: float | Tensor
        if isinstance(scale, Tensor):
            self.register_buffer("scale", scale, persistent=False)  # moves with the module
        else:
            self.scale = scale
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.resampling = (resampling or ResampleSettings()).resolve(length.tokens)
        frozen = isinstance(dictionary, Untied) and dictionary.frozen_decoder
        self.resampling.check(type(dictionary), frozen)
        self.sparsity_warmup_steps = self._steps(sparsity_warmup_tokens, "sparsity_warmup_tokens")
        self._warmup_steps = self._steps(
            self.optimizer_settings.warmup_tokens, "optimizer.warmup_tokens"
        )
        self._decay_steps = self._steps(
            self.optimizer_settings.decay_tokens, "optimizer.decay_tokens"
        )
        self.target_l0 = (
            None if target_l0 is None else TargetL0(target_l0, dictionary, length.steps)
        )
        self._resample_inputs = resample_inputs
        self._counts: Tensor | None = None
        self._num_rows: Tensor | int = length.batch_size  # end to end, those that count
        self._loss: Tensor | None = None
        self.register_buffer("tokens_since_fired", torch.zeros(dictionary.d_sae, dtype=torch.long))
        self.register_buffer("revived", torch.zeros((), dtype=torch.long))

    @property
    def dead_after_tokens(self) -> int:
        """A latent that did not fire for so many tokens is dead."""
        return int(self.resampling.dead_after_tokens)

    @property
    def tokens_seen(self) -> int:
        """Vectors trained on so far, over all ranks."""
        return self.global_step * self.length.batch_size

    def dead_share(self) -> float:
        """Share of latents that did not fire in the last `dead_after_tokens`."""
        return dead_latents(self.tokens_since_fired, self.dead_after_tokens).double().mean().item()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        x, output = self.output(batch)
        loss = torch.stack(list(output.terms.values())).sum()
        # over all ranks: whatever follows from the counts is equal on each of them
        self._counts = sum_over_ranks(output.code.firing_counts())
        self._loss = loss.detach()
        rhythm = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        logged = (self.global_step + 1) % rhythm == 0
        if logged or loss.device.type == "cpu":  # on an accelerator every look costs a wait
            self._check_finite(mean_over_ranks(loss))  # so that all ranks stop, or none
        if logged:
            self._log_step(x, output, loss)
        return loss

    def output(self, batch: Any) -> tuple[Float[Tensor, "batch width"], StepOutput]:
        """The activations of a batch, and what the dictionary makes of them."""
        return batch, self.dictionary.training_output(batch, self._moment())

    def _moment(self) -> Moment:
        penalty = self._sparsity_factor
        return Moment(
            penalty if self.target_l0 is None else penalty * self.target_l0.gain(),
            self.global_step / self.length.steps,
            dead_latents(self.tokens_since_fired, self.dead_after_tokens),
        )

    @property
    def _sparsity_factor(self) -> float:
        return warmup(self.global_step, self.sparsity_warmup_steps)

    @property
    def coefficient(self) -> dict[str, float]:
        """The penalty's coefficient as `target_l0` has steered it, by its name; else nothing."""
        if self.target_l0 is None:
            return {}
        return self.target_l0.coefficient(self.dictionary)

    def _in_lm_units(self, x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
        """Target and reconstruction of a scaled batch."""
        target, scale = self.dictionary.split(x)[1], self.scale
        if isinstance(scale, Tensor):
            scale = self.dictionary.split(scale)[1]
        return target / scale, x_hat / scale

    def _log_step(self, x: Tensor, output: StepOutput, loss: Tensor) -> None:
        assert self._counts is not None
        values = {"train/loss": mean_over_ranks(loss.detach())}
        terms = reconstruction_terms(*self._in_lm_units(x, output.x_hat.detach()))
        sums = {name: sum_over_ranks(term.sum(0)) for name, term in terms.items()}
        fvu = reconstruction_metrics(sums)["fvu"]
        if bool(torch.isfinite(fvu)):  # undefined for a batch of equal rows
            values["train/fvu"] = fvu
        for name, term in output.terms.items():
            values[f"train/loss_{name}"] = mean_over_ranks(term.detach())
        values["train/l0"] = self._counts.sum() / sums["rows"]
        values["train/revived"] = self.revived.float()
        values["train/lr"] = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
        values["train/sparsity_factor"] = torch.tensor(self._sparsity_factor)
        for name, value in self.coefficient.items():
            values[f"train/{name}"] = torch.tensor(value)
        values["tokens"] = torch.tensor(
            self.tokens_seen + self.length.batch_size, dtype=torch.double
        )
        self.log_dict(values)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the architecture edit its gradients."""
        self.dictionary.constrain_gradients()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Bring all gradients together to `gradient_norm`, or clip them at `gradient_clip_val`.

        Lightning refuses a fused Adam here, which would undo the scaling of float16 by itself;
        bfloat16 and float32 have no such scaling.
        """
        parameters = [p for p in self.dictionary.parameters() if p.grad is not None]
        if self.gradient_norm:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            for parameter in parameters:
                assert parameter.grad is not None
                parameter.grad.mul_(self.gradient_norm / (norm + 1e-12))
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then everything that must be part of the step (see the class)."""
        seen = self.tokens_seen  # Lightning counts the step only after this method
        super().optimizer_step(*args, **kwargs)
        self.dictionary.constrain_parameters()
        self._count_firing()
        if self.resampling.due(seen, seen + self.length.batch_size):
            self._resample(seen)

    def _count_firing(self) -> None:
        assert self._counts is not None
        fired = self._counts > 0
        self.tokens_since_fired += self.length.batch_size
        self.tokens_since_fired[fired] = 0
        if self.target_l0 is not None and self._sparsity_factor == 1:
            self.target_l0.steer(self._counts.sum() / self._num_rows)

    def _resample(self, seen: int) -> None:
        assert self._loss is not None
        self._check_finite(mean_over_ranks(self._loss))  # rows are drawn by their losses
        dead = dead_latents(self.tokens_since_fired, self.dead_after_tokens)
        draw = hash((self.seed, seen)) % 2**63
        inputs = self._resample_inputs or self.trainer.datamodule.sample_rows  # pyright: ignore
        latents = resample(
            self.dictionary,
            self.trainer.optimizers[0],
            dead,
            lambda: inputs(int(self.resampling.sample_tokens), draw),
            torch.Generator().manual_seed(draw),
            self.resampling.build(),
        )
        # the sample is the same on every rank; rounding on unlike hardware need not be
        copy_from_first_rank(self.dictionary.parameters())
        self.tokens_since_fired[latents] = 0
        self.revived += len(latents)

    def validation_step(self, batch: Float[Tensor, "batch width"], batch_idx: int) -> Evaluated:
        """Reconstruction in the LM's own units, for the callbacks."""
        x, _ = self.dictionary.split(batch)
        code = self.dictionary.encode_code(x)
        target, x_hat = self._in_lm_units(batch, self.dictionary.reconstruct(code, x).float())
        return {"x": target, "x_hat": x_hat, "code": code}

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """The optimiser with linear warm-up and linear decay, stepped per batch."""
        settings = self.optimizer_settings
        optimizer = settings.build(
            self.dictionary.parameter_groups(settings.lr, settings.bias_rate), self.dictionary.betas
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: self._lr_factor(step),  # a plain function stays out of checkpoints
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _lr_factor(self, step: int) -> float:
        decay = linear_decay(step, self.length.steps, self._decay_steps)
        return warmup(step, self._warmup_steps) * decay

    def on_train_start(self) -> None:
        """Set the learning rate anew: a run that is continued for longer has another schedule."""
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * self._lr_factor(self.global_step)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep Lightning's counts on the step: logging and validation follow them.

        After a restart they may be one off, depending on where in a step the checkpoint was made.
        """
        loop = self.trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = self.global_step
        loop.batch_progress.total.ready = self.global_step + 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to overwrite a good checkpoint with a diverged one."""
        for name, parameter in self.dictionary.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise self._diverged(f"{name} holds NaN or infinite values")

    def _steps(self, span: int | float | str, name: str) -> int:
        return round(span_tokens(span, self.length.tokens, name) / self.length.batch_size)

    def _check_finite(self, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            raise self._diverged(f"the loss is {loss.item()}")

    def _diverged(self, what: str) -> NonFiniteLossError:
        return NonFiniteLossError(
            f"Training diverged at step {self.global_step}: {what}. The last checkpoint before is "
            f"untouched. Try a smaller optimizer.lr (now {self.optimizer_settings.lr:g}), a longer "
            "optimizer.warmup_tokens, or look for NaN in your own activations."
        )
