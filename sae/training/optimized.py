"""Optimiser of a dictionary: rates of its parameters, schedule, norm of the gradients."""

from collections.abc import Collection
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sae.dictionaries.base import Dictionary
from sae.errors import ConfigError
from sae.training.optimizers import OptimizerSettings
from sae.training.schedules import RunLength, linear_decay, warmup


class OptimizedModule(L.LightningModule):
    """A module that moves the parameters of a dictionary.

    Args:
        dictionary: The dictionary to train.
        length: Steps and batch size, for schedules in tokens.
        optimizer: Optimiser and learning-rate schedule.
        gradient_norm: Norm that all gradients together are brought to in every step; None: they
            are clipped at the trainer's `gradient_clip_val`, or left as they are.
        renewed: Fields of `optimizer` that replace what a checkpoint says.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        length: RunLength,
        optimizer: OptimizerSettings | None,
        gradient_norm: float | None,
        renewed: Collection[str],
    ) -> None:
        super().__init__()
        self.dictionary, self.length, self.gradient_norm = dictionary, length, gradient_norm
        self.optimizer_settings = optimizer or OptimizerSettings()
        settings, self._renewed = self.optimizer_settings, renewed
        self._warmup_steps = length.part(settings.warmup_tokens, "optimizer.warmup_tokens")
        self._decay_steps = length.part(settings.decay_tokens, "optimizer.decay_tokens")
        self._norm: Tensor | None = None

    def configure_optimizers(self) -> Any:
        """The optimiser with linear warm-up and linear decay, stepped per batch."""
        settings = self.optimizer_settings
        optimizer = settings.build(
            parameter_groups(self.dictionary, settings), self.dictionary.betas
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

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the architecture edit its gradients."""
        self.dictionary.before_step()

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
            gradients = [p.grad for p in parameters if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients)
            for gradient in gradients:
                gradient.mul_(self.gradient_norm / (self._norm + 1e-12))
        elif gradient_clip_val:
            self._norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Overwrite optimiser settings of the checkpoint with those changed by `resume_with`."""
        if self._renewed:
            renew(checkpoint, self.dictionary, self.optimizer_settings, self._renewed)


def parameter_groups(dictionary: Dictionary, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Groups of parameters that share a learning rate, for the optimiser.

    Biases that are fast by default are a group of their own at every rate: a short run that is
    continued as a long one finds its state again.
    """
    fast = dictionary.bias_rate if settings.bias_rate is None else settings.bias_rate
    apart = dictionary.biases if fast != 1 or dictionary.bias_rate != 1 else ()
    common = [p for name, p in dictionary.named_parameters() if name not in apart]
    biases = [p for name, p in dictionary.named_parameters() if name in apart]
    groups = [{"params": common, "lr": settings.lr}, {"params": biases, "lr": settings.lr * fast}]
    return groups if biases else groups[:1]


def renew(
    checkpoint: dict[str, Any],
    dictionary: Dictionary,
    settings: OptimizerSettings,
    names: Collection[str],
) -> None:
    """Put some settings into the optimiser of a checkpoint, which is changed in place.

    Settings that are not named stay as they were saved: a short run that goes on as a long one
    keeps its moments and rates.

    Args:
        checkpoint: As Lightning saves it.
        dictionary: The dictionary to train.
        settings: The settings.
        names: Names of the new settings.

    Raises:
        ConfigError: If `bias_rate` would need another optimiser.
    """
    saved = checkpoint["optimizer_states"][0]["param_groups"]
    groups = parameter_groups(dictionary, settings)
    if len(groups) != len(saved):
        raise ConfigError(
            f"optimizer.bias_rate={settings.bias_rate} cannot change while a run goes on with "
            f"sae={dictionary.architecture}: biases had the common rate. Drop it."
        )
    ratio = settings.lr / saved[0]["initial_lr"]
    betas = {"beta1": settings.beta1, "beta2": settings.beta2}
    for old, new in zip(saved, groups, strict=True):
        if "bias_rate" in names or ("lr" in names and old is saved[0]):
            old["initial_lr"] = new["lr"]
        elif "lr" in names:
            old["initial_lr"] *= ratio
        if "eps" in names:
            old["eps"] = settings.eps
        old["betas"] = tuple(
            then if beta is None or name not in names else beta
            for then, (name, beta) in zip(old["betas"], betas.items(), strict=True)
        )
    for schedule in checkpoint["lr_schedulers"]:
        schedule["base_lrs"] = [group["initial_lr"] for group in saved]
