"""The LightningModule: one optimiser step of a dictionary, and what must happen around it."""

from collections.abc import Callable, Collection
from typing import Any, ClassVar, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.dictionaries.codes import Code
from sae.dictionaries.step import StepOutput, StepState
from sae.functional import reconstruction_metrics, reconstruction_terms
from sae.training.divergence import FEWEST_ROWS, Watch
from sae.training.optimized import OptimizedModule
from sae.training.optimizers import OptimizerSettings
from sae.training.ranks import copy_from_first_rank, mean_over_ranks, sum_over_ranks
from sae.training.resampling import ResampleSettings, dead_latents, resample
from sae.training.schedules import RunLength, warmup
from sae.training.target_l0 import TargetL0


class Evaluated(TypedDict):
    """Output of a validation or test step for the callbacks, in the LM's own units."""

    x: Float[Tensor, "batch d_out"]
    """The vectors to reconstruct: the input, or a transcoder's target."""
    x_hat: Float[Tensor, "batch d_out"]
    code: Code


class SAEModule(OptimizedModule):
    """Trains a `Dictionary` on scaled activation batches.

    All edits beside the gradient (decoder constraint, firing counters, resampling) happen inside
    `optimizer_step`: Lightning runs callback hooks before the module's own, so a checkpoint that a
    callback writes in `on_train_batch_end` would miss edits that the module makes there.

    Args:
        dictionary: The dictionary to train.
        length: Steps and batch size, for schedules in tokens.
        optimizer: See `OptimizedModule`.
        resampling: Dead window and resampling times.
        sparsity_warmup_tokens: Linear warm-up of all penalties; tokens or a share ("5%").
        target_l0: L0 that the penalty's coefficient is steered to; None: it stays as given.
        gradient_norm: See `OptimizedModule`.
        scale: Factor that the batches were multiplied with, or one for each column; metrics
            divide by it.
        seed: Seed of the resampler's draws.
        resample_inputs: `(n, seed) -> [n d_in]` random scaled training vectors; default: the
            trainer's datamodule.
        renewed: See `OptimizedModule`.

    Attributes:
        look: True if this step is looked at for divergence though it is not logged: set by who
            is about to save it.
    """

    tokens_since_fired: Tensor
    revived: Tensor
    reconstructs: ClassVar[bool] = True
    """True if reconstruction is trained, so that a large FVU is a failure."""

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
        renewed: Collection[str] = (),
    ) -> None:
        super().__init__(dictionary, length, optimizer, gradient_norm, renewed)
        self.seed = seed
        self.scale: float | Tensor
        if isinstance(scale, Tensor):
            self.register_buffer("scale", scale, persistent=False)  # moves with the module
        else:
            self.scale = scale
        self.resampling = (resampling or ResampleSettings(at_tokens=[])).resolve(length.tokens)
        self.resampling.check(type(dictionary), dictionary.frozen_decoder)
        self.sparsity_warmup_steps = length.part(sparsity_warmup_tokens, "sparsity_warmup_tokens")
        self.target_l0 = (
            None if target_l0 is None else TargetL0(target_l0, dictionary, length.steps)
        )
        self._resample_inputs = resample_inputs
        self.look, self._fvu = False, torch.tensor(torch.nan)
        self.watch = Watch(length.steps, self.dead_after_tokens, self._advice())
        self._counts: Tensor | None = None
        self._num_rows: Tensor | int = length.batch_size  # end to end, those that count
        self._loss: Tensor | None = None
        self.register_buffer("tokens_since_fired", torch.zeros(dictionary.d_sae, dtype=torch.long))
        self.register_buffer("revived", torch.zeros((), dtype=torch.long))

    @property
    def dead_after_tokens(self) -> int:
        """Number of tokens without a firing after which a latent counts as dead."""
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
        logged = (self.global_step + 1) % self._log_every == 0
        self.look |= logged or self._last_step
        if self.look or loss.device.type == "cpu":  # on an accelerator every look costs a wait
            self.watch.check_loss(self.global_step, output.terms)
        if self.look:
            sums = self._reconstruction_sums(x, output.x_hat.detach())
            self._fvu = reconstruction_metrics(sums)["fvu"]
            if logged:
                self._log_step(output, sums["rows"])
        return loss

    @property
    def _log_every(self) -> int:
        return self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _last_step(self) -> bool:
        return self.global_step + 1 >= self.length.steps

    def output(self, batch: Any) -> tuple[Float[Tensor, "batch width"], StepOutput]:
        """The activations of a batch, and what the dictionary makes of them."""
        return batch, self.dictionary.training_output(batch, self._state())

    def _state(self) -> StepState:
        penalty = self._sparsity_factor
        return StepState(
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

    def _reconstruction_sums(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """`reconstruction_terms` of a batch over all ranks, in the LM's own units."""
        terms = reconstruction_terms(*self._in_lm_units(x, x_hat))
        return {name: sum_over_ranks(term.sum(0)) for name, term in terms.items()}

    def _log_step(self, output: StepOutput, rows: Tensor) -> None:
        assert self._counts is not None
        assert self._loss is not None
        values = {"train/loss": mean_over_ranks(self._loss)}
        if bool(torch.isfinite(self._fvu)):  # undefined for a batch of equal rows
            values["train/fvu"] = self._fvu
        for name, term in output.terms.items():
            values[f"train/loss_{name}"] = mean_over_ranks(term.detach())
        values["train/l0"] = self._counts.sum() / rows
        values["train/revived"] = self.revived.float()
        values["train/lr"] = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"])
        values["train/sparsity_factor"] = torch.tensor(self._sparsity_factor)
        for name, value in self.coefficient.items():
            values[f"train/{name}"] = torch.tensor(value)
        values["tokens"] = torch.tensor(
            self.tokens_seen + self.length.batch_size, dtype=torch.double
        )
        self.log_dict(values)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then everything that must be part of the step (see the class)."""
        seen = self.tokens_seen  # Lightning counts the step only after this method
        super().optimizer_step(*args, **kwargs)
        self.dictionary.after_step()
        self._count_firing()
        if self.look:
            self._judge()
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
        self.watch.check_loss(
            self.global_step, {"loss": self._loss}
        )  # rows are drawn by their losses
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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep Lightning's counts on the step: logging and validation follow them.

        After a restart they may be one off, depending on where in a step the checkpoint was made.
        """
        loop = self.trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = self.global_step
        loop.batch_progress.total.ready = self.global_step + 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to overwrite a good checkpoint with a diverged one.

        Raises:
            DivergedError: If a number is not finite, or the run ends as it should not.
        """
        self._check_state()
        if self.watch.suspect and self.global_step >= self.length.steps:
            raise self.watch.diverged(self.global_step, self.watch.suspect)

    def _judge(self) -> None:
        """Look at the step that was done.

        Raises:
            DivergedError: If it went wrong.
        """
        step, self.look = self.global_step + 1, False
        self._check_state()
        if self._norm is not None and not bool(torch.isfinite(self._norm)):
            raise self.watch.diverged(step, "the norm of the gradients is infinite")
        last, rows = self._last_step, self.length.batch_size
        steered = not self.reconstructs or (self.target_l0 is not None and not last)
        warm = step > max(self._warmup_steps, self.sparsity_warmup_steps)
        # rows that are all equal need no latent: their FVU is undefined
        silent = int(self.tokens_since_fired.min()) if bool(torch.isfinite(self._fvu)) else 0
        self.watch.look(
            step,
            fvu=float(self._fvu) if self.reconstructs and rows >= FEWEST_ROWS else torch.nan,
            silent_tokens=silent if last or not steered else 0,
            silent_after=min(self._log_every, self.length.steps) * rows,
            may_stop=(warm or last) and not steered,
        )

    def _check_state(self) -> None:
        trainer = self._trainer  # None where a module is used without one
        optimizer = trainer.optimizers[0] if trainer is not None and trainer.optimizers else None
        self.watch.check_state(self.global_step, self.dictionary, optimizer)

    def _advice(self) -> str:
        settings, name, lower = self.optimizer_settings, self.dictionary.coefficient, ""
        if name is not None:
            lower = f" or {name} (now {getattr(self.dictionary.config, name):g})"
        return (
            f"Try a smaller optimizer.lr (now {settings.lr:g}){lower}, a longer "
            "optimizer.warmup_tokens, or look for wrong values in your own activations."
        )
